"""A whole run with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Tinyverse
from tinyverse.cli import run as running
from tinyverse.cli import trainer as training
from tinyverse.database import server


def test_a_run_ends_with_what_came_out(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the dashboard, which would say that nobody is at work any more."""
    shown: list[Any] = []

    class Seen(training.Progress):
        def __init__(self, line: Any, render: Any, **options: Any) -> None:
            shown.append(render)
            super().__init__(line, render, **options)

    monkeypatch.setattr(training, "Progress", Seen)
    run("run", "-n", 2, "--num-envs", 4)
    assert shown[0]().plain.startswith("train: update 2, ")


def test_players_and_games_of_run(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, words: list[str], **_: Any) -> None:
            started.append(words)

        def poll(self) -> int:
            return 0

        def terminate(self) -> None: ...
        def wait(self, timeout: float = 0) -> None: ...

    monkeypatch.setattr(running.subprocess, "Popen", Process)
    monkeypatch.setattr(training, "train_run", lambda *_, **__: None)
    words = [
        "catch",
        "run",
        "--redis",
        "redis://x",
        "--database",
        "mine:Mine",
        "--players",
        3,
        "--num-envs",
        5,
        "--step-timeout",
        2,
        "--seed",
        10,
    ]
    (Path("mine.py")).write_text(
        "from tinyverse import MemoryDatabase\nclass Mine(MemoryDatabase):\n    def __init__(self, url, run): super().__init__()"
    )
    monkeypatch.setattr(server, "find_server", lambda *_, **__: server.Address("redis://x", "--redis"))
    assert tinyverse(*words).code == 0
    assert len(started) == 3
    assert all(
        " --num-envs=5 --step-timeout=2.0" in " ".join(words) and "play --name catch" in " ".join(words)
        for words in started
    )
    assert [words[words.index("--seed") + 1] for words in started] == ["11", "12", "13"]
    assert all("--database mine:Mine" in " ".join(words) for words in started)
