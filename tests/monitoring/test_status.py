"""Status: scripts may rely on the keys, and the numbers are the run's."""

from __future__ import annotations

import json

import pytest

from tests.helpers.people import a_run, a_spec
from tests.helpers.terminal import shown
from tinyverse.core.run_config import run_config
from tinyverse.database.base import Worker, log_error
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import status, terminal

KEYS = {
    "run", "experiment", "settings", "run_id", "version", "update", "step", "inserted", "sampled", "sessions", "bytes",
    "capacity", "reuse", "mean_return", "episodes", "workers", "counters", "metrics", "evaluation",
    "human_sessions", "human_return", "errors", "reuse_wanted", "compression", "steps_per_second", "frames_per_second",
    "sessions_per_second", "curve", "waits", "bottleneck",
}  # fmt: skip
WORKER_KEYS = {
    "id", "role", "host", "pid", "num_envs", "steps", "steps_per_second", "version", "lag", "sessions", "dropped", "faults", "uptime",
    "waits_for", "waits_seconds", "error", "seen", "frame_skip", "stages",
}  # fmt: skip


def test_the_keys_are_always_the_same(database):
    full, empty = status.gather(database, "environment"), status.gather(MemoryDatabase(), "environment")
    assert full.keys() == empty.keys() == KEYS
    assert all(worker.keys() == WORKER_KEYS for worker in full["workers"])
    assert json.loads(json.dumps(full)) == full
    assert json.loads(json.dumps(empty)) == empty


def test_the_numbers_are_the_runs(database):
    facts = status.gather(database, "environment")
    assert [worker["id"] for worker in facts["workers"]] == ["play-1", "play-2"]
    wanted = {
        "run": "environment", "experiment": "counting", "settings": {"learning_rate": 1e-3}, "version": 3, "update": 30,
        "step": 4000, "inserted": 4, "sampled": 6.0, "sessions": 4, "bytes": 20, "capacity": 50, "reuse": 1.5,
        "mean_return": 2.5, "episodes": 2, "counters": {"rejected": 2}, "metrics": {"loss/total": 0.5},
    }  # fmt: skip
    assert {name: facts[name] for name in wanted} == wanted


def test_an_empty_run_has_no_means():
    facts = status.gather(MemoryDatabase(), "environment")
    assert (facts["reuse"], facts["mean_return"], facts["experiment"], facts["workers"]) == (None, None, None, [])


@pytest.mark.parametrize("on_redis", [False, True])
def test_what_ended_a_worker_can_be_read_with_its_traceback(redis_url, on_redis):
    database = a_run(redis_url) if on_redis else MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    assert "no worker has ended" in shown(terminal.errors(status.gather(database, "x")))

    def careless():
        raise KeyError("[/red] left")

    for number in range(12):
        try:
            careless()
        except KeyError as error:
            log_error(database, Worker("play-1", "play", "here", number), error)
    log_error(database, Worker("play-1", "play"), KeyboardInterrupt())
    facts = status.gather(database, "x")
    assert [row["pid"] for row in facts["errors"]] == list(range(2, 12))
    text = shown(terminal.errors(facts))
    assert text.count("in careless") == 10 and "play on here (pid 11)" in text and "KeyError: '[/red] left'" in text
    assert "10 errors; the last: KeyError" in shown(terminal.panel(facts))
    database.clear()
    assert database.errors() == []
