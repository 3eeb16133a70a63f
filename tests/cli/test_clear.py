"""A run is removed from the database, if nobody works in it."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from tests.helpers.command_line import Tinyverse, created, info, one_sentence


def test_clear(run: Tinyverse, tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    for answer, code in (("n\n", 130), ("", 130)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert tinyverse("catch", "clear", *name).code == code
        assert info(run)["sessions"] == 2
    run("clear", "--yes", "--keep-weights")
    assert (info(run)["sessions"], info(run)["version"]) == (0, 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    run("clear")
    assert tinyverse("catch", "info", *name).code == 1


def test_clear_refuses_while_workers_live(run: Tinyverse, tinyverse: Tinyverse, redis_url: str) -> None:
    from tinyverse.database.base import new_worker
    from tinyverse.database.redis import RedisDatabase

    created(run)
    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    database.beat(new_worker("play"))
    said = tinyverse("catch", "clear", "--yes", "--name", run.name)  # type: ignore[attr-defined]
    one_sentence(said, 1, f"is at work: play on {socket.gethostname()} (pid {os.getpid()})", "--force")
    run("clear", "--yes", "--force")
    assert database.state().version == -1
    database.close()
