"""Experiment: parts given or overridden, and what is said when one of them is not what it should be."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.helpers.counting import CountingAgent, CountingEnv
from tinyverse.algorithms.learner import Learner
from tinyverse.core.errors import ExperimentError
from tinyverse.envs.pool import SerialPool
from tinyverse.experiment.experiment import Experiment


class Idle(Learner):
    """Learns nothing."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def train_step(self, batch: Any) -> dict[str, Any]:
        return {}


class Inherited(Experiment):
    """The same experiment as `by_parts`."""

    unroll_length = 7
    num_envs = 3

    def make_env(self, evaluation: bool = False) -> Any:
        return CountingEnv(nested=evaluation)

    def make_agent(self, observation_space: Any, action_space: Any) -> CountingAgent:
        return CountingAgent(observation_space, action_space)

    def make_learner(self, agent: Any) -> Idle:
        return Idle(agent)


def by_parts(**parts: Any) -> Experiment:
    """The same experiment as `Inherited`, with some parts replaced."""
    usual: dict[str, Any] = {
        "make_env": lambda evaluation: CountingEnv(nested=evaluation), "make_agent": CountingAgent, "make_learner": Idle,
        "unroll_length": 7, "num_envs": 3,
    }  # fmt: skip
    return Experiment(**{**usual, **parts})


@pytest.mark.parametrize("experiment", [Inherited(), by_parts()], ids=["inherited", "by parts"])
def test_parts_and_inheritance_are_the_same_thing(experiment: Experiment) -> None:
    agent = experiment.agent()
    learner = experiment.learner(agent)
    assert (experiment.unroll_length, experiment.num_envs, experiment.batch_size) == (7, 3, Experiment.batch_size)
    assert isinstance(learner, Idle) and learner.agent is agent
    assert isinstance(experiment.pool(3), SerialPool) and experiment.pool(3).num_envs == 3
    assert experiment.spec(agent).fields["observations"][0] == (8, 3)
    assert not experiment.env().nested and experiment.env(evaluation=True).nested


def test_parts_given_to_a_subclass_win() -> None:
    assert Inherited(num_envs=9).num_envs == 9
    assert Inherited().num_envs == 3 and Experiment().num_envs == 1


def test_an_unknown_part_is_named_with_the_known_ones() -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment(batches=3)
    message = str(caught.value)
    assert "no part 'batches'" in message
    for part in (
        "batch_size",
        "make_env",
        "make_pool",
        "make_agent",
        "make_learner",
        "train_step",
        "unroll_length",
        "sampler",
    ):
        assert part in message
    with pytest.raises(ExperimentError, match="_spaces"):
        Experiment(_spaces=None)


@pytest.mark.parametrize("part", ["make_env", "make_pool", "make_agent", "make_learner", "train_step"])
def test_a_part_that_is_called_must_be_callable(part: str) -> None:
    with pytest.raises(ExperimentError, match=f"{part} is 3, wanted a function"):
        Experiment(**{part: 3})


def test_parts_that_are_missing() -> None:
    with pytest.raises(ExperimentError, match="gives no environment"):
        Experiment().pool(1)
    with pytest.raises(ExperimentError, match="gives no agent"):
        Experiment(make_env=CountingEnv).agent()
    with pytest.raises(ExperimentError, match="cannot learn"):
        Experiment().learner(CountingAgent())


@pytest.mark.parametrize(
    ("part", "made", "sentence"),
    [
        ("make_env", None, "make_env gave None, wanted a gymnasium.Env"),
        ("make_env", "pong", "make_env gave a str, wanted a gymnasium.Env"),
        ("make_pool", None, "got None, wanted a function that makes an environment, or a Gymnasium VectorEnv"),
        ("make_agent", None, "make_agent returned NoneType, wanted an Agent"),
        ("make_agent", 3, "make_agent returned int, wanted an Agent"),
        ("make_learner", None, "make_learner returned NoneType, wanted a Learner"),
    ],
)
def test_parts_that_return_something_else(part: str, made: Any, sentence: str) -> None:
    experiment = by_parts(**{part: lambda *arguments, **named: made})
    with pytest.raises(ExperimentError) as caught:
        experiment.learner(experiment.agent())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("part", "call"),
    [("make_agent", "make_agent(observation_space, action_space)"), ("make_learner", "make_learner(agent)"),
     ("make_pool", "make_pool(num_envs)")],
)  # fmt: skip
def test_parts_that_take_other_arguments(part: str, call: str) -> None:
    experiment = by_parts(**{part: lambda a, b, c, d: None})
    with pytest.raises(ExperimentError) as caught:
        experiment.learner(experiment.agent())
    assert f"{part} is called as {call}, which it does not take" in str(caught.value)


def test_a_type_error_inside_a_part_stays_what_it_is() -> None:
    def make_agent(observation_space: Any, action_space: Any) -> Any:
        return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        by_parts(make_agent=make_agent).agent()


@pytest.mark.parametrize(
    ("env_id", "hint"), [("CartPol-v1", "CartPole"), ("CartPole-v77", "v1"), ("Nix/Environment-v0", "Nix")]
)
def test_an_unknown_environment_is_a_sentence(env_id: str, hint: str) -> None:
    experiment = by_parts(make_env=lambda: gymnasium.make(env_id))
    with pytest.raises(ExperimentError, match=r"^make_env: ") as caught:
        experiment.pool(1)
    assert hint in str(caught.value)


def test_render_mode_is_passed_to_those_who_take_it() -> None:
    seen: list[dict[str, Any]] = []

    def make_env(**named: Any) -> CountingEnv:
        seen.append(named)
        return CountingEnv()

    by_parts(make_env=make_env).env(evaluation=True, render_mode="rgb_array")
    by_parts(make_env=CountingEnv).env(evaluation=True, render_mode="rgb_array")  # takes neither
    assert seen == [{"evaluation": True, "render_mode": "rgb_array"}]


def test_a_native_pool_is_preferred_for_playing() -> None:
    pools: list[int] = []

    def make_pool(num_envs: int) -> SerialPool:
        pools.append(num_envs)
        return SerialPool(CountingEnv, num_envs)

    experiment = by_parts(make_pool=make_pool)
    assert experiment.pool(4).num_envs == 4 and pools == [4]
    assert experiment.spaces()[0].shape == (3,) and pools == [4]  # known by then


def test_a_pool_that_can_use_cores_is_told_how_many() -> None:
    asked: list[tuple[int, int]] = []

    def make_pool(num_envs: int, num_threads: int = 1) -> SerialPool:
        asked.append((num_envs, num_threads))
        return SerialPool(CountingEnv, num_envs)

    experiment = by_parts(make_pool=make_pool)
    experiment.pool(2, 4)
    experiment.pool(3)
    assert asked == [(2, 4), (3, 1)]


def test_a_pool_that_is_seeded_when_it_is_built_gets_a_seed() -> None:
    seeds: list[int] = []

    def make_pool(num_envs: int, seed: int) -> SerialPool:
        seeds.append(seed)
        return SerialPool(CountingEnv, num_envs)

    experiment = by_parts(make_pool=make_pool)
    experiment.pool(2, seed=5)
    experiment.pool(2)
    experiment.pool(2)
    assert seeds[0] == 5 and len(set(seeds)) == 3


def test_train_step_gets_a_learner_around_it() -> None:
    def train_step(agent: Any, batch: Any) -> dict[str, Any]:
        return {"loss/sum": np.float32(batch), "agent": agent}

    agent = CountingAgent()
    learner = Experiment(train_step=train_step).learner(agent)
    assert learner.train_step(3) == {"loss/sum": 3.0, "agent": agent}
