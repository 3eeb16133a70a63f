"""The examples of what one can bring oneself, and those of the continuous and the sparse: they run, and they learn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tinyverse.algorithms import A2C, PPO
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.main import main
from tinyverse.cli.options import TrainOptions
from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.player.evaluator import Evaluation, evaluate

OWN = ["custom_agent", "custom_algorithm", "custom_environment", "custom_network"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def built(context: RunContext) -> Experiment:
    return loader.build(context.module, context.resolved({}))


def learned(name: str, updates: int, **settings: str) -> Evaluation:
    context = RunContext(name, seed=1, quiet=True, settings=settings)
    trainer = local.callback(context, TrainOptions(updates=updates))
    return evaluate(built(context), trainer.agent, episodes=10, greedy=True, seed=3)


@pytest.mark.parametrize("name", [*OWN, "acrobot", "pendulum"])
def test_each_runs_from_the_command_line(name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "local", "-n", "2", "-q"])
    assert ended.value.code == 0
    assert Path("runs", name).is_dir()


@pytest.mark.parametrize("name", OWN)
def test_each_of_ones_own_is_a_page(name: str) -> None:
    lines = loader.examples()[name].read_text().splitlines()
    assert len(lines) < 80 and f"tinyverse {name}.py local" in "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "updates", "enough"),
    [
        ("custom_environment", 40, 0.9),
        pytest.param("custom_agent", 100, 60, marks=pytest.mark.slow),
        pytest.param("custom_algorithm", 100, 60, marks=pytest.mark.slow),
        pytest.param("custom_network", 80, 60, marks=pytest.mark.slow),
    ],
)
def test_each_of_ones_own_learns(name: str, updates: int, enough: float) -> None:
    """CartPole pays about 22 to chance, and 9 to whoever always goes one way; the corridor pays 1."""
    assert learned(name, updates).mean > enough


def test_the_hint_is_for_learning_only() -> None:
    experiment = built(RunContext("custom_environment"))
    training, judging = experiment.env(), experiment.env(evaluation=True)
    for env in (training, judging):
        env.reset(seed=1)
        env.unwrapped.place = 5
    assert training.step(1)[1] == pytest.approx(0.1) and judging.step(1)[1] == 0.0


@pytest.mark.parametrize(
    ("example", "settings"),
    [("mujoco_sac", {"hidden": "8"}), ("mujoco_ppo", {"epochs": "1", "num_envs": "2", "unroll_length": "8"})],
)
def test_mujoco_runs(example: str, settings: dict[str, str]) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("imageio")
    learned(example, 2, env_id="Hopper-v5", **settings)


@pytest.mark.parametrize("example", ["mujoco_sac", "mujoco_ppo"])
@pytest.mark.parametrize("missing", ["mujoco", "imageio"])
def test_without_mujoco_it_says_what_to_install(missing: str, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExperimentError, match=r"pip install .*gymnasium\[mujoco\]"):
        built(RunContext(example)).spaces()


def test_acrobot_knows_its_algorithms() -> None:
    for algorithm in (PPO, A2C):
        experiment = built(RunContext("acrobot", settings={"algorithm": algorithm.__name__.lower()}))
        assert isinstance(experiment.learner(experiment.agent()), algorithm)
    with pytest.raises(SettingsError, match="'dqn' is unknown. Use ppo or a2c"):
        built(RunContext("acrobot", settings={"algorithm": "dqn"}))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pendulum_swings_up_within_8000_steps() -> None:
    assert learned("pendulum", 7_000).mean > -200


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_acrobot_is_learned() -> None:
    assert learned("acrobot", 150).mean > -110


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_acrobot_is_learned_by_a2c() -> None:
    settings = {"algorithm": "a2c", "unroll_length": "32", "entropy_cost": "0.01"}
    assert learned("acrobot", 600, **settings).mean > -110
