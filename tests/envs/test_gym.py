"""The real old gym: 0.26.2 under today's numpy, and 0.21.0 in an environment of its own (`make test-gym`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from tests.helpers.counting import CountingEnv
from tests.helpers.sources import is_modern, package
from tinyverse.core.errors import ExperimentError
from tinyverse.envs import pool_of
from tinyverse.envs.adapters import gymnasium_space

pytestmark = pytest.mark.filterwarnings("ignore")  # gym itself warns of much


@pytest.fixture
def gym() -> Any:
    return package("gym")


def made(gym: Any, name: str, limit: int) -> Any:
    """An environment, as whoever has this gym makes it, cut after `limit` steps by gym itself."""
    if is_modern(gym):  # its checker needs numpy 1: disable_env_checker=True is what everyone must write
        return gym.make(name, disable_env_checker=True, max_episode_steps=limit)
    return gym.wrappers.TimeLimit(gym.make(name).unwrapped, limit)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v3"])
def test_games_of_gym_play(gym: Any, name: str) -> None:
    pool, again = (pool_of(lambda: made(gym, name, 30), 2) for _ in range(2))
    assert isinstance(pool.observation_space, spaces.Space) and isinstance(pool.action_space, spaces.Space)
    np.testing.assert_array_equal(pool.reset(3), again.reset(3))
    ended, ends, cuts = np.zeros(2, bool), 0, 0
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = (2, *pool.action_space.shape)
        actions = rng.integers(0, 2, shape) if pool.action_space.dtype.kind == "i" else rng.random(shape)
        step = pool.step(actions)
        assert not (step.rewards[ended].any() or (step.terminated | step.truncated)[ended].any())
        ended = step.terminated | step.truncated
        ends, cuts = ends + int(ended.sum()), cuts + int(step.truncated.sum())
    assert ends > 8 and (cuts > 0 or name in ("CartPole-v1", "FrozenLake-v1"))
    pool.close()


def test_a_game_written_for_gym_0_21_and_its_time_limit(gym: Any) -> None:
    """4 values of step, reset without info, seed(); gym's own wrapper says that time was up."""

    class Old(gym.Env):
        observation_space = gym.spaces.Tuple((gym.spaces.Box(0, 9, (1,), np.float32), gym.spaces.Discrete(100)))
        action_space = gym.spaces.MultiDiscrete([2, 3])

        def __init__(self) -> None:
            self.chance, self.now = np.random.RandomState(0), 0

        def seed(self, seed: int | None = None) -> list[int | None]:
            self.chance = np.random.RandomState(seed)
            return [seed]

        def reset(self) -> Any:
            self.now = 0
            return self._seen()

        def step(self, action: Any) -> Any:
            self.now += 1
            info = {"TimeLimit.truncated": True} if self.now == 5 else {}
            return self._seen(), 1.0, self.now == 5, info

        def _seen(self) -> Any:
            return np.array([self.now], np.float32), int(self.chance.randint(100))

    pool = pool_of(Old, 2)
    first, other = pool.reset(1), pool_of(Old, 2).reset(1)
    assert first[0].tolist() == [[0], [0]] and first[1].tolist() == other[1].tolist()
    for now in (1, 2, 3, 4, 5):
        step = pool.step(np.array([[1, 2], [0, 0]]))
        assert step.observations[0].tolist() == [[now], [now]]
    assert step.truncated.all() and not step.terminated.any()
    assert pool.step(np.zeros((2, 2), int)).observations[0].tolist() == [[0], [0]]


def test_spaces_of_gym_become_gymnasiums(gym: Any) -> None:
    old, start = gym.spaces, {"start": -1} if is_modern(gym) else {}
    space = gymnasium_space(
        old.Dict(
            box=old.Box(-1.0, 2.0, (2, 3), np.float32),
            pair=old.Tuple((old.Discrete(4, **start), old.MultiBinary(3))),
            many=old.MultiDiscrete([2, 5]),
        )
    )
    assert space == spaces.Dict(
        box=spaces.Box(-1.0, 2.0, (2, 3), np.float32),
        pair=spaces.Tuple((spaces.Discrete(4, **start), spaces.MultiBinary(3))),
        many=spaces.MultiDiscrete([2, 5]),
    )


def test_an_environment_that_knows_no_seeds_plays_unseeded() -> None:
    class Careless(CountingEnv):
        def reset(self) -> Any:  # type: ignore[override]
            return super().reset()

    assert pool_of(Careless, 2).reset(3).shape == (2, 3)


def test_agents_that_take_turns_are_refused_with_the_line_that_helps() -> None:
    class Turns:
        def agent_iter(self) -> None: ...

    with pytest.raises(ExperimentError, match=r"take turns \(AEC\).*aec_to_parallel"):
        pool_of(Turns, 1)
