"""Environments that others wrote: no row of theirs is lost, repeated or moved. Extras are run where they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.helpers.sources import is_modern, package
from tinyverse import Experiment
from tinyverse.cli.check import check
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.envs import Pool, pool_of
from tinyverse.experiment import loader
from tinyverse.player.evaluator import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def stepped(pool: Pool, steps: int) -> tuple[int, int]:
    """Terminations and truncations of so many steps; every row after an end is a reset."""
    ended, ends = np.zeros(pool.num_envs, bool), np.zeros(2, int)
    pool.action_space.seed(0)
    for _ in range(steps):
        step = pool.step(np.stack([pool.action_space.sample() for _ in range(pool.num_envs)]))
        assert not step.rewards[ended].any() and not (step.terminated | step.truncated)[ended].any()
        ended = step.terminated | step.truncated
        ends += step.terminated.sum(), step.truncated.sum()
    return int(ends[0]), int(ends[1])


def envpool_cartpole(num_envs: int, seed: int = 0) -> Any:
    return package("envpool").make("CartPole-v1", env_type="gymnasium", num_envs=num_envs, seed=seed)


def gym_cartpole() -> Any:
    gym = package("gym")
    return gym.make("CartPole-v1", **({"disable_env_checker": True} if is_modern(gym) else {}))


CARTPOLES = {
    "gymnasium": lambda: pool_of(lambda: gymnasium.make("CartPole-v1"), 4),
    "gymnasium, vector": lambda: pool_of(gymnasium.make_vec("CartPole-v1", 4, "vector_entry_point"), 4),
    "gymnasium, sync": lambda: pool_of(gymnasium.make_vec("CartPole-v1", 4, "sync"), 4),
    "gym": lambda: pool_of(gym_cartpole, 4),
    "envpool": lambda: pool_of(envpool_cartpole(4), 4),
}


@pytest.mark.parametrize("source", CARTPOLES)
def test_rows_of_real_cartpoles_follow_from_each_other_as_physics_has_it(source: str) -> None:
    """Off by one row, or by one environment, and neither the next state nor the end would follow from state and action."""
    pool, world, random = CARTPOLES[source](), gymnasium.make("CartPole-v1").unwrapped, np.random.default_rng(1)
    before, ended, ends = pool.reset(3).copy(), np.zeros(4, bool), 0
    for _ in range(300):
        actions = random.integers(2, size=4)
        step = pool.step(actions)
        for game in range(4):
            now, flags = step.observations[game], (step.terminated[game], step.truncated[game])
            if ended[game]:
                assert np.abs(now).max() <= 0.05 and (step.rewards[game], *flags) == (0, False, False)
            else:
                world.reset()
                world.state = before[game].astype(np.float64)
                wanted, _, over, _, _ = world.step(int(actions[game]))
                np.testing.assert_allclose(now, wanted, atol=1e-4)
                assert (step.rewards[game], *flags) == (1, over, False)
        ended, before = step.terminated | step.truncated, step.observations.copy()
        ends += int(ended.sum())
    assert ends > 20
    pool.close()


def test_envpool_takes_the_players_seed() -> None:
    package("envpool")
    experiment = Experiment(make_pool=envpool_cartpole)
    one, same, other = (experiment.pool(3, seed=seed) for seed in (1, 1, 2))
    first = one.reset(0).copy()
    np.testing.assert_array_equal(first, same.reset(0))
    assert (first != other.reset(0)).all()


def test_pettingzoo() -> None:
    package("pettingzoo")
    from pettingzoo.classic import rps_v2

    pool = pool_of(rps_v2.parallel_env, 4)
    pool.reset(0)
    assert pool.num_envs == 4
    terminations, truncations = stepped(pool, 500)
    assert terminations + truncations >= 4 and (terminations + truncations) % 2 == 0


def test_dm_control() -> None:
    suite = pytest.importorskip("dm_control.suite")
    pool = pool_of(lambda: suite.load("cartpole", "swingup", environment_kwargs={"flat_observation": True}), 2)
    pool.reset(0)
    assert stepped(pool, 1100) == (0, 2)  # a time limit, and nothing else


def test_dm_control_through_shimmy() -> None:
    suite, shimmy = pytest.importorskip("dm_control.suite"), package("shimmy")
    pool = pool_of(lambda: shimmy.DmControlCompatibilityV0(suite.load("cartpole", "swingup")), 2)
    pool.reset(0)
    assert set(pool.observation_space.spaces) == {"position", "velocity"}
    assert stepped(pool, 1100) == (0, 2)


EXPERIMENT = """
from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import A2C
from tinyverse.networks import ModularNetwork

{body}

def make_experiment():
    return Experiment(
        make_env=make_env,
        make_agent=lambda observations, actions: TorchAgent(ModularNetwork(observations, actions)),
        make_learner=lambda agent: A2C(agent),
        unroll_length=10, num_envs=4, batch_size=4,
    )
"""
BODIES = {
    "gym": """
import gym
def make_env():
    options = {"disable_env_checker": True} if gym.__version__ >= "0.26" else {}
    return gym.wrappers.TimeLimit(gym.make("CartPole-v1", **options).unwrapped, 20)
""",
    "pettingzoo": """
from pettingzoo.classic import rps_v2
def make_env():
    return rps_v2.parallel_env(max_cycles=5)
""",
    "dm_control": """
from dm_control import suite
def make_env():
    return suite.load("cartpole", "swingup", task_kwargs={"time_limit": 0.2})
""",
}


@pytest.mark.parametrize("kind", BODIES)
def test_each_kind_is_checked_learned_from_and_evaluated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(kind)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(EXPERIMENT.replace("{body}", BODIES[kind]))
    context = RunContext("mine.py", seed=1, quiet=True)
    assert "an update" in dict(check.callback(context))
    trainer = local.callback(context, TrainOptions(updates=2))
    assert trainer.update == 2
    evaluation = evaluate(loader.build(context.module, {}), trainer.agent, episodes=3, at_once=2)
    assert len(evaluation.returns) == 3 and min(evaluation.lengths) > 0
