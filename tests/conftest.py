"""What several test files share: one real server, started on first use and gone with the test process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import torch

from tinyverse import progress
from tinyverse.redis_server import Server, private_server
from tinyverse.redis_setup import find_binary

pytest.register_assert_rewrite("database_contract")


def pytest_configure(config: Any) -> None:
    """Before any test looks for a server; see tests/servers.py."""
    if servers.CHOSEN:
        folder = Path(tempfile.mkdtemp(prefix="tvs", dir="/tmp"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        servers.choose(folder)


def pytest_report_header() -> str:
    path, version = find_binary()
    return f"server: {servers.CHOSEN or path} ({'.'.join(map(str, version))})"


@pytest.fixture(autouse=True)
def denormal_numbers_stay() -> Iterator[None]:
    """Players and trainers flush them to zero, for the whole process; hypothesis insists on them."""
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
