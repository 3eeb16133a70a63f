"""The examples: each builds and passes `check`, and the small ones learn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyverse.cli.check import check
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.experiment import loader
from tinyverse.player.evaluator import evaluate
from tinyverse.replay.samplers import Fresh

CHECKOUT = Path(__file__).parents[2]
NEEDS = {
    "atari": "ale_py", "doom": "vizdoom", "jax": "jax", "lunarlander": "Box2D", "minigrid": "minigrid", "mujoco": "mujoco"
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


# those that need programs of their own are checked by the tests of their environments
@pytest.mark.parametrize("name", sorted(set(loader.examples()) - {"vnc", "miniwob_tasks", "starcraft"}))
def test_each_example_passes_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for example, package in NEEDS.items():
        if name.startswith(example):
            pytest.importorskip(package)
    build = loader.build

    def build_with_few(*arguments: Any) -> Any:
        experiment = build(*arguments)
        experiment.num_envs = experiment.batch_size = 2
        return experiment

    if name.startswith("atari"):  # each emulator takes long to start, and to seed
        monkeypatch.setattr(loader, "build", build_with_few)
    rows = dict(check.callback(RunContext(name, seed=1)))
    assert rows["experiment"].startswith("{") and "weights" in rows["agent"]
    assert {"environments", "playing", "encoding", "decoding", "learner", "an update", "weights"} <= set(rows)


def test_each_example_says_how_to_run_it() -> None:
    for name, file in loader.examples().items():
        assert f"tinyverse {name}.py " in file.read_text().split('"""')[1]


@pytest.mark.parametrize(
    "name", ["catch", "cartpole", "cartpole_dqn", "pendulum", "acrobot", "tabular", "custom_agent", "jax_cartpole"]
)
def test_a_seed_makes_local_repeatable(name: str) -> None:
    if name.startswith("jax"):
        pytest.importorskip("jax")

    def weights(seed: int, run: str) -> Any:
        trainer = local.callback(RunContext(name, name=run, seed=seed, quiet=True), TrainOptions(updates=2))
        assert trainer.row()["replay/lag"] == 0.0 or not isinstance(trainer.replay.sampler, Fresh)
        return trainer.agent.get_weights()

    first, again, other = weights(1, "a"), weights(1, "b"), weights(2, "c")
    assert all(np.array_equal(array, again[key]) for key, array in first.items())
    assert any(not np.array_equal(array, other[key]) for key, array in first.items())


def test_catch_is_learned_in_half_a_minute() -> None:
    began = time.process_time()
    trainer = local.callback(RunContext("catch", seed=1, quiet=True), TrainOptions(updates=250))
    assert trainer.row()["play/return"] >= 0.95
    assert time.process_time() - began < 30


@pytest.mark.slow
def test_tabular_is_learned() -> None:
    context = RunContext("tabular", seed=1, quiet=True)
    trainer = local.callback(context, TrainOptions(updates=600))
    experiment = loader.build(context.module, context.resolved({}))
    assert evaluate(experiment, trainer.agent, episodes=20, greedy=True, seed=3).mean == 1.0
    assert trainer.row()["play/return"] >= 0.9  # of the last 100 episodes, with ε = 0.02


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_cartpole_is_learned_in_three_minutes(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tv", dir="/tmp") as server:
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TINYVERSE_SERVER_DIR": server}
        words = ["cartpole", "run", "--players", "1", "--minutes", "3", "--seed", "1", "-q"]
        subprocess.run([sys.executable, "-m", "tinyverse", *words], cwd=tmp_path, env=env, timeout=230, check=True)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in Path("runs/cartpole/metrics.jsonl").read_text().splitlines()
    ]
    assert max(row["play/return"] or 0 for row in rows) >= 475
