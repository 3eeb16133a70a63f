"""Sources: the counting environment in every dialect that a pool takes, spoken by a stand-in, and by the real package where it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv, VectorObservationWrapper

from tests.helpers.counting import BUTTONS, CountingEnv, counting_vector
from tests.helpers.faulty import counting, nested_counting
from tests.helpers.fork_server import GROUP, fork_server
from tinyverse.envs import Pool, SerialPool, VectorPool, pool_of
from tinyverse.envs.process_pool import ProcessPool

GAMES = 5


def package(name: str) -> Any:
    """An optional package, whatever it has to warn of; without it the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def is_modern(gym: Any) -> bool:
    """Whether this gym speaks as Gymnasium does, since 0.26."""
    return tuple(map(int, gym.__version__.split(".")[:2])) >= (0, 26)


class OldGymCounting:
    """CountingEnv as old gym spoke: seed(), reset() without info, done and TimeLimit.truncated."""

    def __init__(self) -> None:
        self.env, self._seed = CountingEnv(), None
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def seed(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> Any:
        seed, self._seed = self._seed, None
        return self.env.reset(seed=seed)[0]

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated or truncated, {"TimeLimit.truncated": truncated} if truncated else {}

    def close(self) -> None:
        self.env.close()


class Passing(VectorObservationWrapper):
    """Changes nothing; names it does not know, `step_wait` too, it passes on to what it wraps, as many wrappers do."""

    steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: Any) -> Any:
        self.steps += 1
        return super().step(actions)

    def observations(self, observations: Any) -> Any:
        return observations


def asynchronous() -> VectorEnv:
    fork_server()
    return gymnasium.vector.AsyncVectorEnv([CountingEnv] * GAMES, context="forkserver")


class DmCounting:
    """CountingEnv as dm_env has it; its arrays are written to again."""

    class Spec:
        def __init__(self, **facts: Any) -> None:
            vars(self).update(facts)

    class TimeStep:
        def __init__(self, observation: Any, reward: Any, discount: Any, over: bool) -> None:
            self.observation, self.reward, self.discount, self.last = observation, reward, discount, lambda: over

    def __init__(self) -> None:
        self.env, self.first = CountingEnv(), True
        self._seen = np.zeros(3, np.int32)

    def observation_spec(self) -> Any:
        return {"clock": self.Spec(shape=(3,), dtype=np.int32, minimum=0, maximum=2**20)}

    def action_spec(self) -> Any:
        return self.Spec(shape=(), dtype=np.int64, num_values=BUTTONS)

    def reset(self) -> Any:
        self._seen[:] = self.env.reset(seed=seeds.pop() if self.first else None)[0]
        self.first = False
        return self.TimeStep({"clock": self._seen}, None, None, False)

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self._seen[:] = observation
        return self.TimeStep({"clock": self._seen}, np.float64(reward), 1.0 - terminated, terminated or truncated)

    def close(self) -> None:
        self.env.close()


seeds = list(range(10_000))  # of environments of dm_env, which cannot be seeded from outside


class World:
    """Counting environments side by side as PettingZoo has agents: each leaves when its own is over."""

    possible_agents = ["north", "east", "south", "west", "middle"]

    def __init__(self) -> None:
        self.envs = {agent: CountingEnv() for agent in self.possible_agents}
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return self.envs[agent].observation_space

    def action_space(self, agent: str) -> Any:
        return self.envs[agent].action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        seeds = [seed and seed + 7 * place for place in range(len(self.agents))]
        return {name: env.reset(seed=seed)[0] for (name, env), seed in zip(self.envs.items(), seeds, strict=True)}, {}

    def step(self, actions: Any) -> Any:
        assert actions.keys() == set(self.agents), "an agent that is out acts, or one that is in does not"
        results = {agent: self.envs[agent].step(action) for agent, action in actions.items()}
        self.agents = [agent for agent in self.agents if not (results[agent][2] or results[agent][3])]
        return tuple({agent: result[part] for agent, result in results.items()} for part in range(5))

    def close(self) -> None:
        pass


def gym_counting() -> Any:
    """The environment in gym's own class, with gym's own spaces, behind gym's own wrapper, as the installed gym speaks."""
    gym = package("gym")

    class Old(OldGymCounting, gym.Env):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(0, 2**20, (3,), np.int32)
            self.action_space = gym.spaces.Discrete(BUTTONS)

    class Modern(Old):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return self.env.reset(seed=seed)

        def step(self, action: int) -> Any:
            return self.env.step(action)

    return gym.wrappers.TimeLimit(Modern() if is_modern(gym) else Old(), 1000)


def dm_env_counting() -> Any:
    """The environment with the specs and time steps of the real dm_env."""
    dm_env = package("dm_env")
    package("dm_env.specs")

    def time_step(observation: Any, reward: Any, discount: Any, over: bool) -> Any:
        kind = dm_env.StepType.FIRST if reward is None else dm_env.StepType.LAST if over else dm_env.StepType.MID
        return dm_env.TimeStep(kind, reward, discount, observation)

    class Real(DmCounting, dm_env.Environment):
        TimeStep = staticmethod(time_step)

        def observation_spec(self) -> Any:
            return {"clock": dm_env.specs.BoundedArray((3,), np.int32, 0, 2**20)}

        def action_spec(self) -> Any:
            return dm_env.specs.DiscreteArray(BUTTONS)

    return Real()


def pettingzoo_world() -> Any:
    """The world as one of the real PettingZoo's."""

    class Real(World, package("pettingzoo").ParallelEnv):
        metadata: dict[str, Any] = {"name": "counting"}

    return Real()


def workers_of(make: Callable[[int], Pool]) -> Pool:
    env = CountingEnv(nested=make is nested_counting)
    return ProcessPool(make, GAMES, 2, (env.observation_space, env.action_space))


SOURCES: dict[str, Callable[[], Pool]] = {
    "environments": lambda: SerialPool(CountingEnv, GAMES),
    "old gym": lambda: SerialPool(OldGymCounting, GAMES),
    "real gym": lambda: SerialPool(gym_counting, GAMES),
    "next step": lambda: VectorPool(counting_vector(GAMES)),
    "disabled": lambda: VectorPool(counting_vector(GAMES, AutoresetMode.DISABLED)),
    "async": lambda: VectorPool(asynchronous()),
    "rebuilt vector": lambda: pool_of(lambda: counting_vector(GAMES), GAMES, restart=True),
    "wrapped async": lambda: VectorPool(Passing(asynchronous())),
    "mended environments": lambda: SerialPool(CountingEnv, GAMES, restart=True),
    "dm_env": lambda: SerialPool(DmCounting, GAMES),
    "real dm_env": lambda: SerialPool(dm_env_counting, GAMES),
    "agents": lambda: pool_of(World, 2),
    "mended agents": lambda: pool_of(World, 2, restart=True),
    "real agents": lambda: pool_of(pettingzoo_world, 2),
    "workers": lambda: workers_of(counting),
    "nested workers": lambda: workers_of(nested_counting),
    "nested environments": lambda: SerialPool(lambda: CountingEnv(nested=True), GAMES),
    "nested next step": lambda: VectorPool(counting_vector(GAMES, nested=True)),
    "nested disabled": lambda: VectorPool(counting_vector(GAMES, AutoresetMode.DISABLED, nested=True)),
}
IN_PROCESSES = {"async", "wrapped async", "workers", "nested workers"}
SOURCE_PARAMS = [
    pytest.param(name, marks=[pytest.mark.xdist_group(GROUP)] if "async" in name else []) for name in SOURCES
]
UNSEEDED = {"dm_env", "real dm_env"}
