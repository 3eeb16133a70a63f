"""A run in full swing."""

from __future__ import annotations

import pytest

from tests.helpers.people import a_spec
from tinyverse.core.run_config import run_config
from tinyverse.database.base import Worker
from tinyverse.database.memory import MemoryDatabase


@pytest.fixture
def database():
    """A run in full swing."""
    database = MemoryDatabase()
    database.create(run_config("counting", {"learning_rate": 1e-3}, a_spec()))
    database.acquire_lease("host:1:x")
    database.put_weights(b"weights", 3, holder="host:1:x", update=30, step=4000)
    database.report(sampled=6, capacity=50)
    database.append([b"12345"] * 4, episodes=[{"return": 1.0, "length": 2}, {"return": 4.0, "length": 2}])
    database.beat(
        Worker("play-2", "play", "host", 17, steps_per_second=1234.5, waits_for="a trainer", waits_seconds=61)
    )
    database.beat(Worker("play-1", "play", "host", 18, error="Traceback:\n [/red] [bold]KeyError[/] \\"))
    database.count(rejected=2)
    database.log_metrics({"loss/total": 0.5})
    return database
