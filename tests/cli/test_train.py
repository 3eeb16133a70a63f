"""Every option of `train` reaches the trainer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_line import Tinyverse, created, info, one_sentence
from tinyverse.cli import trainer as training


def last_row(run: Tinyverse) -> dict[str, Any]:
    """The last line of metrics.jsonl."""
    return json.loads(Path(f"runs/{run.name}/metrics.jsonl").read_text().splitlines()[-1])  # type: ignore[attr-defined]


def test_a_run_is_played_and_trained(run: Tinyverse) -> None:
    facts = created(run)
    assert facts["experiment"] == "catch" and facts["update"] == 0 and facts["version"] >= 0
    run("play", "-n", 2, "-b", 3, "-q")
    assert info(run)["inserted"] == 6  # -n batches of -b sessions
    run("train", "-n", 2, "-b", 3, "-q")
    now = info(run)
    assert (now["update"], now["sampled"], now["step"]) == (
        2,
        6,
        2 * 3 * 9 - 3,
    )  # a second session of an environment begins with its reset
    assert now["version"] > facts["version"]


def test_train_s_publishes_that_often(run: Tinyverse) -> None:
    before = created(run)["version"]
    run("play", "-n", 8, "-b", 2, "-q")
    run("train", "-n", 4, "-b", 1, "-s", 1, "-q")
    often = info(run)["version"] - before
    run("train", "-n", 4, "-b", 1, "-s", 100, "-q")
    assert info(run)["version"] - before - often < often


def test_buffer_size_is_the_streams_capacity(run: Tinyverse) -> None:
    assert created(run)["capacity"] == 5000
    assert created(run, "--buffer-size", 48)["capacity"] == 48


def test_max_lag_drops_old_sessions(run: Tinyverse) -> None:
    created(run)
    run("play", "-n", 3, "-b", 2, "-q")
    run("train", "--max-lag", 0, "-b", 2, "--minutes", 0.03, "-q")
    assert info(run)["update"] == 1 and last_row(run)["replay/expired"] >= 2


def test_min_sessions_are_waited_for(run: Tinyverse) -> None:
    created(run)
    run("play", "-n", 2, "-b", 2, "-q")
    run("train", "--min-sessions", 5, "-b", 1, "--minutes", 0.02, "-q")
    assert info(run)["update"] == 0
    run("train", "--min-sessions", 4, "-b", 1, "-n", 1, "-q")
    assert info(run)["update"] == 1


def test_threads(run: Tinyverse) -> None:
    for threads in (2, 1):
        created(run, "--threads", threads)
        assert torch.get_num_threads() == threads


def test_options_that_reach_the_trainer(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train(trainer: Any, **named: Any) -> None:
        calls.append(((trainer,), named))
        trainer.leave()

    monkeypatch.setattr(training, "train", train)
    run("train", "--precision", "bf16", "--save-every", 7, "-n", 5, "-s", 3)
    run("train")
    (trainer,), named = calls[0]
    assert (trainer.config.precision, trainer.config.publish_every, trainer.replay.device.type) == ("bf16", 3, "cpu")
    assert (named["save_every"], named["updates"]) == (7, 5)
    (trainer,), named = calls[1]
    assert (trainer.config.precision, trainer.config.publish_every, named["save_every"], named["updates"]) == (
        "fp32",
        1,
        60,
        None,
    )


def test_force_changes_the_agreement_on_the_server(run: Tinyverse, tinyverse: Tinyverse, monkeypatch: Any) -> None:
    from tinyverse.database.base import new_worker

    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    run("train", "-n", 1, "-b", 2, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    other = ["catch", "train", "-n", 1, "-b", 2, "-q", "--minutes", 0.01, "-o", "learning_rate=0.5", *name]
    one_sentence(tinyverse(*other), 1, "learning_rate=0.5", "--force")
    with monkeypatch.context() as patch:
        patch.setattr("tinyverse.database.redis.RedisDatabase.workers", lambda self: [new_worker("train")])
        one_sentence(tinyverse(*other, "--force"), 1, "--force: run", "is being trained on")
    assert tinyverse(*other, "--force").code == 0
    assert (info(run)["settings"]["learning_rate"], info(run)["update"]) == (0.5, 1)
    shutil.rmtree(f"runs/{run.name}")  # type: ignore[attr-defined]
    other[other.index("learning_rate=0.5")] = "learning_rate=0.75"
    one_sentence(tinyverse(*other, "--force"), 1, "there is no checkpoint of run")
