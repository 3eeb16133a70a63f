"""The examples that need a package more: they run, say what to install, and learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tinyverse.algorithms import returns
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.main import main
from tinyverse.cli.options import TrainOptions
from tinyverse.core.batch import Batch
from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.player.evaluator import Evaluation, evaluate
from tinyverse.trainer.run_folder import RunFolder

NEEDS = {"minigrid_memory": "minigrid", "doom": "vizdoom", "jax_cartpole": "jax", "lunarlander": "Box2D"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def built(name: str, **settings: str) -> Experiment:
    context = RunContext(name, seed=1, settings=settings)
    return loader.build(context.module, context.resolved({}))


def learned(name: str, updates: int, episodes: int = 20, greedy: bool = True, **settings: str) -> Evaluation:
    context = RunContext(name, seed=1, quiet=True, settings=settings)
    trainer = local.callback(context, TrainOptions(updates=updates))
    return evaluate(
        built(name, **settings), trainer.agent, episodes=episodes, at_once=min(episodes, 10), greedy=greedy, seed=3
    )


@pytest.mark.parametrize("name", NEEDS)
def test_each_runs_from_the_command_line(name: str) -> None:
    pytest.importorskip(NEEDS[name])
    with pytest.raises(SystemExit) as ended:
        main([name, "local", "-n", "2", "-q"])
    assert ended.value.code == 0
    assert Path("runs", name).is_dir()


@pytest.mark.parametrize("name", NEEDS)
def test_without_its_package_each_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = NEEDS[name]
    for module in [module for module in sys.modules if module.startswith((f"{missing}.", "gymnasium.envs.box2d"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExperimentError, match=f"{missing}.*pip install"):
        built(name).spaces()


def test_minigrid_knows_its_memories() -> None:
    pytest.importorskip("minigrid")
    for memory in ("lstm", "gru", "attention"):
        agent = built("minigrid_memory", memory=memory).agent()
        assert agent.initial_state(2) != ()
    assert built("minigrid_memory", memory="none").agent().initial_state(2) == ()
    with pytest.raises(SettingsError, match="'elephant' is unknown. Use one of lstm"):
        built("minigrid_memory", memory="elephant")


def test_where_the_choice_is_made_the_object_cannot_be_seen() -> None:
    """Whichever way the agent looks from where the ways part: there is nothing of the beginning's object to see."""
    pytest.importorskip("minigrid")
    env = built("minigrid_memory").env()
    env.reset(seed=1)
    world, seen = env.unwrapped, []
    x, y = world.success_pos[0], world.height // 2
    for kind in ("key", "ball"):
        world.grid.get(1, y - 1).type = kind
        for direction in range(4):
            world.agent_pos, world.agent_dir = np.array((x, y)), direction
            seen.append(world.gen_obs()["image"])
    for key, ball in zip(seen[:4], seen[4:], strict=True):
        np.testing.assert_array_equal(key, ball)


def test_doom_gives_small_grey_screens_and_ends_are_told() -> None:
    pytest.importorskip("vizdoom")
    env = built("doom").env()
    assert env.observation_space.shape == (48, 64) and env.action_space.n == 4
    observation, _ = env.reset(seed=1)
    assert observation.std() > 5
    total, steps, ended = 0.0, 0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step(0)
        total, steps, ended = total + reward, steps + 1, terminated or truncated
    env.close()
    assert steps == pytest.approx(300 / 4, abs=2) and total == pytest.approx(-300, abs=20)


def test_doom_scenarios_have_three_buttons_of_which_one_is_pressed() -> None:
    pytest.importorskip("vizdoom")
    for scenario in loader.load_module("doom").SCENARIOS:
        experiment = built("doom", scenario=scenario)
        env = experiment.env()
        buttons = [str(button).rpartition(".")[2] for button in env.unwrapped.game.get_available_buttons()]
        pressed = {key: env.unwrapped.button_map[action] for key, action in experiment.keys.items()}
        assert env.action_space.n == 4 and list(pressed["left"]) == [1, 0, 0] and list(pressed["right"]) == [0, 1, 0]
        assert "LEFT" in buttons[0] and "RIGHT" in buttons[1] and buttons[2] in ("ATTACK", "MOVE_FORWARD")
        assert list(pressed["space"]) == list(pressed["up"]) == [0, 0, 1] and not pressed[""].any()
        env.close()
    with pytest.raises(SettingsError, match="'e1m1' is unknown. Use one of basic, defend_the_center"):
        built("doom", scenario="e1m1")


@pytest.mark.parametrize("scenario", ["defend_the_center", "health_gathering"])
def test_doom_learns_from_other_scenarios(scenario: str) -> None:
    pytest.importorskip("vizdoom")
    trainer = local.callback(
        RunContext("doom", seed=1, quiet=True, settings={"scenario": scenario}), TrainOptions(updates=2)
    )
    assert trainer.update == 2 and np.isfinite(trainer.row()["loss/total"])


def jax_batch(agent: Any) -> Batch:
    random = np.random.default_rng(0)
    steps, num_envs = 6, 4
    observations = random.normal(size=(steps + 1, num_envs, 4)).astype(np.float32)
    acted = [agent.act(row, (), np.zeros(num_envs, bool)) for row in observations[:-1]]
    ended, valid = random.random((2, steps, num_envs)) < 0.2, np.ones((steps, num_envs), bool)
    for t in range(1, steps):  # the row after an end is its reset
        valid[t] = ~ended[:, t - 1].any(0)
        ended[:, t] &= valid[t]
    arrays = [observations, np.stack([actions for actions, _, _ in acted]), *ended, valid]
    observed, actions, terminated, truncated, valid = map(torch.from_numpy, arrays)
    behaviour = torch.from_numpy(np.stack([extras["behaviour_log_prob"] for _, _, extras in acted]))
    return Batch(
        observations=observed, actions=actions, rewards=torch.randn(steps, num_envs), terminated=terminated,
        truncated=truncated, valid=valid, initial_state=(), extras={"behaviour_log_prob": behaviour},
        weights=torch.ones(num_envs), lag=torch.zeros(num_envs), slots=torch.arange(num_envs),
    )  # fmt: skip


def test_jax_makes_the_same_advantages_as_torch() -> None:
    pytest.importorskip("jax")
    module = loader.load_module("jax_cartpole")
    random = np.random.default_rng(0)
    rewards, discounts, continues = (random.random((3, 9, 4)) < 0.8).astype(np.float32) * 0.9
    values = random.normal(size=(10, 4)).astype(np.float32)
    expected = returns.gae(*(torch.from_numpy(array) for array in (rewards, discounts, continues, values)), 0.7)
    found = module.advantages_of(rewards, discounts, continues, values, 0.7)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_jax_goes_on_from_a_checkpoint_and_players_follow(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    experiment = built("jax_cartpole")
    first, second = (experiment.learner(experiment.agent()) for _ in range(2))
    batch = jax_batch(first.agent)
    first.train_step(batch)
    RunFolder(tmp_path).save(1, {"learner": first.state_dict()})
    second.load_state_dict(RunFolder(tmp_path).load()["learner"])
    for learner in (first, second):
        learner.train_step(batch)
    for name, array in first.get_weights().items():
        np.testing.assert_array_equal(array, second.get_weights()[name])
    player = experiment.agent()
    player.set_weights(first.get_weights())
    for agent in (player, first.agent):
        agent.seed(5)
    mine, theirs = (agent.act(batch.observations[0].numpy(), (), np.zeros(4, bool)) for agent in (first.agent, player))
    np.testing.assert_array_equal(mine[0], theirs[0])
    np.testing.assert_array_equal(mine[2]["behaviour_log_prob"], theirs[2]["behaviour_log_prob"])


def test_jax_learns_nothing_from_rows_that_did_not_happen() -> None:
    pytest.importorskip("jax")
    found = []
    for poison in (0.0, 100.0):
        experiment = built("jax_cartpole")
        agent = experiment.agent()
        agent.seed(0)
        agent.weights = loader.load_module("jax_cartpole").new_weights(agent.key, 4, 2)
        batch, learner = jax_batch(agent), experiment.learner(agent)
        assert not batch.valid.all()
        batch.rewards = torch.where(batch.valid, torch.ones_like(batch.rewards), poison)
        learner.train_step(batch)
        found.append(learner.get_weights())
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jax_balances_the_pole() -> None:
    pytest.importorskip("jax")
    assert learned("jax_cartpole", 300).mean > 475


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_tells_where_to_turn() -> None:
    pytest.importorskip("minigrid")
    with_memory, without = (
        learned("minigrid_memory", 120, episodes=200, greedy=False, memory=memory) for memory in ("attention", "none")
    )
    assert np.mean(np.array(with_memory.returns) > 0) >= 0.9 and np.mean(np.array(without.returns) > 0) < 0.6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lander_lands() -> None:
    pytest.importorskip("Box2D")
    assert learned("lunarlander", 350).mean > 200
