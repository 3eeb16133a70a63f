"""Players on Windows and macOS: as far as it can be seen on Linux, in processes that lack what those systems lack.

`elsewhere/sitecustomize.py` takes it away, in these processes and in those that they start. What they write and print is
in ASCII only, which is less than any of those systems has.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.people import until
from tinyverse.cli import main as cli
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server
from tinyverse.monitoring.status import gather

HERE = Path(__file__).parent
PATIENCE = 240.0  # seconds; a busy machine imports torch for many of them

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a real server on TCP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with private_server(listen=f"127.0.0.1:{port}") as server:
        yield server.tcp_url


@pytest.fixture
def database(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisDatabase]:
    """A run of `catch` with weights in it, made on this system."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYVERSE_REDIS_URL", url)
    database = RedisDatabase(url, f"elsewhere-{secrets.token_hex(4)}")
    with pytest.raises(SystemExit) as ended:
        cli.main(["catch", "train", "--minutes", "0", "-q", "--name", database.run])
    assert not ended.value.code
    yield database
    database.close()


def environment(url: str = "") -> dict[str, str]:
    """Of a process on another system, or as good as."""
    kept = {name: value for name, value in os.environ.items() if "REDIS_URL" not in name and name != "PYTHONUTF8"}
    return {
        **kept, "PYTHONPATH": os.pathsep.join(map(str, [HERE.parent / "helpers" / "elsewhere", HERE.parents[1]])), "OMP_NUM_THREADS": "1",
        "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii",
        **({"TINYVERSE_REDIS_URL": url} if url else {}),
    }  # fmt: skip


def python(*words: str, url: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment(url), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_those_processes_lack_it() -> None:
    python("-c", """if True:
        import faulthandler, importlib, multiprocessing, os, signal, socket, sys
        for module in ("fcntl", "resource", "grp", "pwd"):
            try:
                importlib.import_module(module)
            except ImportError:
                continue
            raise AssertionError(module)
        there = [(socket, "AF_UNIX"), (os, "fork"), (os, "getuid"), (os, "sysconf"), (os, "sched_getaffinity"),
                 (signal, "SIGKILL"), (signal, "SIGHUP"), (signal, "SIGUSR1"), (faulthandler, "register")]
        __name__ = "tinyverse.some_module"
        assert not any(hasattr(module, name) for module, name in there)
        assert sys.platform == "win32" and multiprocessing.get_start_method() == "spawn"
        try:
            open("/proc/self/statm")
        except FileNotFoundError:
            sys.exit(0)
        raise AssertionError("/proc")
    """)  # fmt: skip


def test_a_player_plays_pushes_and_leaves(database: RedisDatabase, url: str) -> None:
    words = [sys.executable, "-m", "tinyverse", "catch", "play", "-b", "4", "--name", database.run]
    with subprocess.Popen(words, env=environment(url), stderr=subprocess.PIPE, text=True) as player:
        try:
            until(lambda: player.poll() is not None or database.state().inserted >= 8, PATIENCE)
            here = [worker.pid for worker in database.workers()]
            player.send_signal(signal.SIGINT)
            said = player.communicate(timeout=PATIENCE)[1]
        finally:
            player.kill()
    assert player.returncode == 0 and "Traceback" not in said, said
    assert here == [player.pid] and database.workers() == []
    facts = gather(database, database.run)
    assert facts["counters"].get("rejected", 0) == 0 and facts["errors"] == []


@pytest.mark.slow
def test_its_games_are_stepped_by_spawned_workers(database: RedisDatabase, url: str) -> None:
    words = ["catch", "play", "--workers", "2", "--step-timeout", "60", "-b", "4", "-n", "2", "--name", database.run]
    python("-m", "tinyverse", *words, url=url)
    assert database.state().inserted == 8


COMMANDS = """\
import os
from tinyverse.cli import main as cli

def check(words, wanted):
    try:
        cli.main(words)
    except SystemExit as ended:
        assert (ended.code or 0) == wanted, (words, ended.code)

for words, wanted in with_a_server:
    check(words, wanted)
del os.environ["TINYVERSE_REDIS_URL"]
for verb in ("play", "info"):
    check(["catch", verb], 1)
for verb in ("start", "status"):
    check(["server", verb], 1)
"""


def test_the_other_words_of_who_plays_and_who_names_no_server_is_told_to(
    database: RedisDatabase, url: str, tmp_path: Path
) -> None:
    name = ["--name", database.run]
    with_a_server = [
        (["catch", "play", "-n", "1", "-b", "2", "-q", *name], 0),
        (["catch", "play", "--worker-memory", "4000", *name], 2),
        (["catch", "check"], 0),
        (["info"], 0),
        (["catch", "info", *name], 0),
        (["catch", "info", "--json", *name], 0),
        (["catch", "eval", "-n", "2", *name], 0),
        (["catch", "sessions", "ls", *name], 0),
        (["catch", "config", *name], 0),
        (["catch", "stop", *name], 0),
        (["new", "mine.py"], 0),
        (["mine.py", "check"], 0),
        (["catch", "local", "-n", "2", "-q", "--name", "alone"], 0),
        (["catch", "eval", "-n", "2", "--no-video", "--name", "alone"], 0),
    ]
    (tmp_path / "commands.py").write_text(f"with_a_server = {with_a_server!r}\n{COMMANDS}")
    said = python("commands.py", url=url)
    assert said.count("all is well") == 2 and said.count("mean return") == 2
    assert "--worker-memory reads /proc" in said
    assert (tmp_path / "runs/alone/checkpoints").is_dir()
    assert said.count("A local server wants unix sockets and users, which this system has not. Name one") == 4
