"""This user's server is started, shown and stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.database.test_server import free_port
from tests.helpers.command_line import Tinyverse
from tinyverse.database import server as redis_server


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
