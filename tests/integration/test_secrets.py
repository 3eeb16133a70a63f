"""Passwords and the shared secret are in no argv, no output, no log, no run folder, no traceback and no row of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.test_commands import Place, place  # noqa: F401
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server

SECRET = "0f3a-the-shared-secret-of-this-run"


@pytest.fixture
def server() -> Iterator[tuple[str, str, str]]:
    """(URL, URL of the administrator, password) of a server on TCP."""
    from tests.database.test_server import free_port

    with private_server(listen=f"127.0.0.1:{free_port()}") as started:
        yield started.tcp_url, started.admin_url, started.tcp_url.partition("tv:")[2].partition("@")[0]


def everything_written(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def every_argv_until_the_end_of(running: subprocess.Popen[str]) -> dict[str, bytes]:
    """The words of all processes of this machine, as anyone can read them."""
    seen = {}
    while running.poll() is None:
        for process in psutil.process_iter(["cmdline", "pid"]):
            seen[f"argv of {process.info['pid']}"] = " ".join(process.info["cmdline"] or []).encode()
        time.sleep(0.05)
    return seen


def every_key(admin_url: str) -> dict[str, bytes]:
    with connect(admin_url) as admin:
        return {f"key {key!r} at {admin_url[-20:]}": admin.dump(key) or b"" for key in admin.keys("*")}  # type: ignore[misc,union-attr]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen programs, most of which import torch
def test_they_are_nowhere_to_be_found(place: Place, server: tuple[str, str, str]) -> None:  # noqa: F811
    url, admin_url, password = server
    place.env |= {"TINYVERSE_REDIS_URL": url, "TINYVERSE_SECRET": SECRET}
    seen: dict[str, bytes] = {}
    running = place.start("catch", "run", "--players", 2, "-n", 200, "-b", 8, "--num-envs", 4, "--seed", 1, "-v")
    seen |= every_argv_until_the_end_of(running)
    place.end(running)
    printed = [place.do("catch", *words) for words in (["info"], ["info", "--json"], ["info", "--errors"], ["eval", "-n", 1, "--no-video"], ["sessions", "ls"])]  # fmt: skip
    place.env["TINYVERSE_REDIS_URL"] = url.replace("tv:", "nobody:")
    for words in (["play", "-n", 1], ["info", "-vv"]):  # refused
        printed.append(place.do("catch", *words, code=1))
    place.env["TINYVERSE_REDIS_URL"] = url.replace(url.rpartition(":")[2], "1/0")
    printed.append(place.do("catch", "train", "-n", 1, "-vv", code=1))  # nobody answers there
    del place.env["TINYVERSE_REDIS_URL"]
    place.do("catch", "run", "-n", 1, "--redis", url, "-q")  # a user who names it in argv
    (place.path / "broken.py").write_text("def make_experiment():\n    raise KeyError('mine')\n")
    place.env["TINYVERSE_REDIS_URL"] = url
    printed.append(place.do("broken.py", "train", "-n", 1, "-vv", code=1))
    seen |= every_key(admin_url)
    database = RedisDatabase(url, "catch")
    seen["state"] = json.dumps(
        [database.meta(), database.metrics(), database.errors(), [vars(w) for w in database.workers()]]
    ).encode()
    database.close()
    seen |= everything_written(place.path) | {f"output {n}": text.encode() for n, text in enumerate(printed)}
    assert (
        len(seen) > 20 and any(name.endswith("settings.json") for name in seen) and any("argv" in name for name in seen)
    )
    found = {name for name, text in seen.items() for word in (password, SECRET) if word.encode() in text}
    assert found == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nor_is_that_of_the_fleets_server(tmp_path: Path) -> None:
    script, word = Path(__file__).parents[2] / "benchmarks" / "fleet.py", "the-password-of-the-fleets-server"
    code = f"""
import runpy, sys
from tinyverse.database import server_config
server_config._secret = lambda path: {word!r} if path.name == "password" else "another"
sys.argv = [{str(script)!r}, "--smoke", "--json"]
sys.path.insert(0, {str(script.parent)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (tmp_path / "fleet.py").write_text(code)
    with (tmp_path / "printed").open("w") as printed:
        running = subprocess.Popen(
            [sys.executable, tmp_path / "fleet.py"], stdout=printed, stderr=printed, cwd=tmp_path
        )
        seen = every_argv_until_the_end_of(running)
    (tmp_path / "fleet.py").unlink()
    assert running.returncode == 0, (tmp_path / "printed").read_text()[-3000:]
    seen |= everything_written(tmp_path)
    assert b'"rows"' in seen["printed"] and {name for name, text in seen.items() if word.encode() in text} == set()
