"""Environments of packages that are extras: run where they are installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tinyverse import Experiment
from tinyverse.envs import Pool, pool_of

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def stepped(pool: Pool, steps: int) -> tuple[int, int]:
    """Terminations and truncations of so many steps; every row after an end is a reset."""
    ended, ends = np.zeros(pool.num_games, bool), np.zeros(2, int)
    pool.action_space.seed(0)
    for _ in range(steps):
        step = pool.step(np.stack([pool.action_space.sample() for _ in range(pool.num_games)]))
        assert not step.rewards[ended].any() and not (step.terminated | step.truncated)[ended].any()
        ended = step.terminated | step.truncated
        ends += step.terminated.sum(), step.truncated.sum()
    return int(ends[0]), int(ends[1])


def test_envpool() -> None:
    envpool = pytest.importorskip("envpool")

    def make_pool(num_games: int, seed: int) -> Any:
        return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=num_games, seed=seed)

    experiment = Experiment(make_pool=make_pool)
    one, same, other = (experiment.pool(3, seed=seed) for seed in (1, 1, 2))
    first = one.reset(0).copy()
    np.testing.assert_array_equal(first, same.reset(0))
    assert (first != other.reset(0)).all()
    assert stepped(one, 200)[0] > 10


def test_dm_control() -> None:
    suite = pytest.importorskip("dm_control.suite")
    pool = pool_of(lambda: suite.load("cartpole", "swingup", environment_kwargs={"flat_observation": True}), 2)
    pool.reset(0)
    assert stepped(pool, 1100) == (0, 2)  # a time limit, and nothing else
