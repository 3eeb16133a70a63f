"""Info, stop, clear and server: what is said of runs and servers, and how they go."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.database.test_server import free_port
from tests.helpers.command_line import Tinyverse, created, info, one_sentence
from tinyverse.cli import info as tidying
from tinyverse.database import server as redis_server


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

    monkeypatch.setattr(tidying.status, "panel", panel)
    run("info", "--watch")
    assert len(drawn) == 2


def test_stop_of_nobody(run: Tinyverse) -> None:
    created(run)
    assert "0 of 0 workers" in run("stop").out


@pytest.mark.parametrize("words", [["info"], ["info", "--json"], ["stop"], ["clear"], ["clear", "--yes"]])
def test_a_mistyped_run_name_is_said(run: Tinyverse, tinyverse: Tinyverse, words: list[str]) -> None:
    created(run)
    said = tinyverse("catch", *words, "--name", "cach")
    one_sentence(said, 1, "there is no run cach in the database; there are ", run.name)  # type: ignore[attr-defined]


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


def test_clear_stop_and_server(tinyverse: Tinyverse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", f"/tmp/tvcli{os.getpid()}")
    assert tinyverse("server", "status").code == 1
    assert tinyverse("server", "status", "--json").out == "null\n"
    assert tinyverse("server", "start", "--max-memory", 64).code == 0
    try:
        said = tinyverse("server", "status", "--json")
        assert said.code == 0 and json.loads(said.out)["max_memory"] == 64_000_000
        assert tinyverse("info").out == "there are no runs on this server\n"
        tinyverse("catch", "train", "-n", 1, "--minutes", 0)
        assert "stopped the local server" in tinyverse("catch", "clear", "--yes", "--stop").out
        assert tinyverse("server", "status").code == 1
        assert tinyverse("server", "stop").out == "no local server was running\n"
    finally:
        redis_server.stop()
        shutil.rmtree(f"/tmp/tvcli{os.getpid()}")


def test_a_server_that_listens_prints_the_line_that_others_need(
    tinyverse: Tinyverse, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", f"/tmp/tvcli{os.getpid()}")
    port = free_port()
    said = tinyverse("server", "start", "--listen", f"127.0.0.1:{port}")
    try:
        line = re.search(
            r"^others reach it with TINYVERSE_REDIS_URL=(redis://tv:\w{64}@127\S+)$", said.out, re.MULTILINE
        )
        assert line is not None, said
        for url, code in ((line[1], 0), (f"redis://127.0.0.1:{port}/0", 1), (f"redis://tv:x@127.0.0.1:{port}/0", 1)):
            monkeypatch.setenv("TINYVERSE_REDIS_URL", url)
            assert tinyverse("info").code == code
    finally:
        redis_server.stop()
        shutil.rmtree(f"/tmp/tvcli{os.getpid()}")
