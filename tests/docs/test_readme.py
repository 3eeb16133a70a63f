"""The README is true: its experiment runs, its commands exist, it is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.cli.words import VERBS
from tinyverse.experiment import loader

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_experiment_of_the_readme_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    trainer = local.callback(RunContext("mine.py", quiet=True, seed=1), TrainOptions(updates=60))
    assert trainer.update == 60
    assert sum(trainer.feeder.returns) / len(trainer.feeder.returns) > 28  # a random player balances for 22 steps
    assert loader.examples().keys() >= {"atari", "cartpole", "catch", "tabular"}


def test_every_command_of_the_readme_has_a_verb() -> None:
    commands = re.findall(r"tinyverse ((?:\w|\.)+) (\w+)", README.replace("`", ""))
    verbs = [verb for experiment, verb in commands if experiment.endswith(".py") or experiment in loader.examples()]
    assert len(verbs) > 4
    assert set(verbs) <= set(VERBS)


def test_it_is_short_and_its_code_is_narrow() -> None:
    assert len(README.encode()) <= 8000
    for block in re.findall(r"```\w*\n(.*?)```", README, re.S):
        assert max(map(len, block.splitlines())) <= 88
    assert (ROOT / "docs" / "images" / "pong.gif").stat().st_size < 2_000_000


def test_the_make_targets_of_the_readme_exist() -> None:
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=30)


def test_a_checkout_runs_as_the_forerunner_did(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tinyverse"), "tabular.py", "local", "-n", "2", "--quiet"], cwd=tmp_path, capture_output=True, text=True, timeout=110
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
