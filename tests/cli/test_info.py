"""What is said of runs and of those who work in them."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.helpers.command_line import Tinyverse, created, info, one_sentence
from tinyverse.cli import info as showing


def test_info(run: Tinyverse, tinyverse: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyverse.database.base import new_worker
    from tinyverse.database.redis import RedisDatabase

    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    waiting = new_worker("play")
    database.beat(waiting)
    assert "no trainer has created it yet" in run("info").out
    database.leave(waiting.id)
    database.close()
    created(run, "-o", "learning_rate=0.25")
    assert "nobody is at work" in run("info").out
    assert info(run)["settings"]["learning_rate"] == 0.25
    assert run.name in tinyverse("info").out.split()  # type: ignore[attr-defined]
    assert run.name in json.loads(tinyverse("info", "--json").out)  # type: ignore[attr-defined]
    drawn: list[str] = []

    def panel(facts: dict[str, Any]) -> str:
        drawn.append(facts["run"])
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return ""

    monkeypatch.setattr(showing.terminal, "panel", panel)
    run("info", "--watch")
    assert len(drawn) == 2


@pytest.mark.parametrize("words", [["info"], ["info", "--json"], ["stop"], ["clear"], ["clear", "--yes"]])
def test_a_mistyped_run_name_is_said(run: Tinyverse, tinyverse: Tinyverse, words: list[str]) -> None:
    created(run)
    said = tinyverse("catch", *words, "--name", "cach")
    one_sentence(said, 1, "there is no run cach in the database; there are ", run.name)  # type: ignore[attr-defined]
