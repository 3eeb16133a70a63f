"""A counting environment and a counting agent: every number that crosses the pipe says where it came from.

An observation is (episode, step, tag): two rows mixed up at an episode's boundary, or between environments, cannot look right.
A reward is `reward_of(episode, step, action)`, so it says which observation and which action it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tinyverse.agents.agent import Agent

BUTTONS = 4


def reward_of(episode: Any, step: Any, button: Any) -> Any:
    """Exact in float32 while episodes < 4,000 and steps < 1,000."""
    return episode * 4000.0 + step * 4.0 + button


def truncates(episode: Any) -> Any:
    """Whether an episode ends by truncation; in pairs, because some sources throw every second episode away."""
    return episode // 2 % 2 == 1


def clock(observations: Any) -> np.ndarray:
    """[…, 3] (episode, step, tag) of observations of either kind."""
    return observations["clock"] if isinstance(observations, Mapping) else observations


class CountingEnv(gymnasium.Env):
    """Episodes of 1 to 6 steps, as the seed has it; episodes 0 and 1 terminate, 2 and 3 are truncated, 4 terminates …

    Refuses an action outside of its space, and a step after the end. With `nested`, the observation is a Dict with a
    Tuple inside and the action a Dict of a button and a stick.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, nested: bool = False) -> None:
        self.nested = nested
        self._clock = spaces.Box(0, 2**20, (3,), np.int32)
        self.observation_space: Any = self._clock
        self.action_space: Any = spaces.Discrete(BUTTONS)
        if nested:
            pair = spaces.Tuple((spaces.Discrete(1000), spaces.Box(-1, 1, (2, 1), np.float32)))
            self.observation_space = spaces.Dict({"clock": self._clock, "pair": pair})
            self.action_space = spaces.Dict(
                {"button": spaces.Discrete(BUTTONS), "stick": spaces.Box(-1, 1, (2,), np.float32)}
            )
        self.episode, self.now, self.length, self.tag = -1, 0, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.episode, self.tag = -1, int(self.np_random.integers(2**20))
        self.episode, self.now, self.length = self.episode + 1, 0, int(self.np_random.integers(1, 7))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        assert self.now < self.length, "stepped after the end"
        reward = reward_of(self.episode, self.now, action["button"] if self.nested else action)
        self.now += 1
        over, limit = self.now == self.length, truncates(self.episode)
        return self._observation(), float(reward), over and not limit, over and limit, {}

    def _observation(self) -> Any:
        numbers = np.array([self.episode, self.now, self.tag], np.int32)
        if not self.nested:
            return numbers
        return {"clock": numbers, "pair": (self.now, np.full((2, 1), self.episode % 2, np.float32))}


def counting_vector(
    num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, nested: bool = False
) -> SyncVectorEnv:
    """The same environments as a native VectorEnv."""
    return SyncVectorEnv([lambda: CountingEnv(nested)] * num_envs, autoreset_mode=mode)


class CountingAgent(Agent):
    """Its state is the number of steps since the episode's start, which must be what the observation says.

    It presses `count % 4`. Extras: `count` [n] and `saw` [n, 3], the clock it was shown. Its weights are one number,
    echoed as `weight` [n].
    """

    def __init__(self, observation_space: Any = None, action_space: Any = None) -> None:
        self.nested = isinstance(action_space, spaces.Dict)
        self.weight = np.zeros(1, np.float32)

    def initial_state(self, n: int) -> np.ndarray:
        return np.zeros(n, np.int64)

    def act(
        self, observations: Any, state: Any, is_first: np.ndarray, greedy: bool = False
    ) -> tuple[Any, Any, dict[str, np.ndarray]]:
        count = np.where(is_first, 0, state)
        actions: Any = count % BUTTONS
        if self.nested:
            actions = {"button": actions, "stick": np.full((len(count), 2), 9.0, np.float32)}
        echo = {"count": count, "saw": clock(observations), "weight": np.repeat(self.weight, len(count))}
        return actions, count + 1, {name: value.astype(np.float32) for name, value in echo.items()}

    def get_weights(self) -> dict[str, np.ndarray]:
        return {"weight": self.weight}

    def set_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weight = np.array(weights["weight"], np.float32)
