"""What several test files share: one real server, started on first use and gone with the test process; its commands.

It imports no torch: pytest-xdist's own process, which starts the workers, needs none.
"""

from __future__ import annotations

import os

# One thread a process, set before torch is imported: xdist keeps every core busy, and the processes of the tests inherit it.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # dozens of processes would compile all that they import, each anew

import itertools
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.helpers import servers
from tinyverse.cli import main as cli
from tinyverse.database.server import Server, private_server
from tinyverse.database.server_config import find_binary
from tinyverse.monitoring import progress

pytest.register_assert_rewrite("tests.helpers.database_contract", "tests.helpers.command_line")

from tests.helpers.command_line import Said, Tinyverse

# The same examples each time, however slow the machine is; --hypothesis-profile=default looks for new ones.
settings.load_profile("ci")

numbers = itertools.count()  # of runs


def pytest_configure(config: Any) -> None:
    """Chooses the server before any test looks for one (tests/helpers/servers.py), and lets processes be interrupted.

    A shell without a terminal ignores SIGINT for what it runs in the background, nohup ignores SIGHUP, and every process
    that a test starts would inherit that. A handler is not inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)
    if servers.CHOSEN:
        folder = Path(tempfile.mkdtemp(prefix="tvs", dir="/tmp"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        servers.choose(folder)


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: tests wait for other processes a quarter of the time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_report_header() -> str:
    path, version = find_binary()
    return f"server: {servers.CHOSEN or path} ({'.'.join(map(str, version))})"


@pytest.fixture(autouse=True)
def denormal_numbers_stay() -> Iterator[None]:
    """Players and trainers flush them to zero, for the whole process; hypothesis insists on them."""
    import torch

    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine anything may take 2 seconds; what a command says must not depend on that."""
    monkeypatch.setattr(progress, "QUICK", 1e6)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A private server; its socket lies in a short folder under /tmp."""
    with private_server() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: Server) -> str:
    """The URL of a private server, for the restricted user every worker is."""
    return redis_server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in which no server is named or runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("TINYVERSE_REDIS_URL", "REDIS_URL", "TINYVERSE_PASSWORD", "TINYVERSE_PARENT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "server").mkdir(mode=0o700)
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(tmp_path / "server"))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def tinyverse(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Tinyverse]:
    """Runs a command in this process."""
    import torch

    threads = torch.get_num_threads()

    def command(*words: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        return Said(ended.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    yield command
    torch.set_num_threads(threads)


@pytest.fixture
def run(tinyverse: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Tinyverse:
    """Runs a verb of `catch` under a run name of this test's own, on a real server."""
    monkeypatch.setenv("TINYVERSE_REDIS_URL", redis_url)
    name = f"cli-{next(numbers)}"

    def command(verb: str, *words: Any) -> Said:
        said = tinyverse("catch", verb, "--name", name, *words)
        assert said.code == 0, said
        return said

    command.name = name  # type: ignore[attr-defined]
    return command
