"""Heartbeat and StopSignal: a worker is heard of, hears the run's State, and leaves when the run is stopped."""

from __future__ import annotations

import contextlib

import pytest

from tests.helpers.people import Flaky, until
from tinyverse.core.errors import DatabaseError, ServerError
from tinyverse.core.timing import Waiting
from tinyverse.database.base import State, new_worker
from tinyverse.database.heartbeat import BackgroundHeartbeat, Heartbeat, StopSignal
from tinyverse.database.memory import MemoryDatabase


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("tinyverse.database.heartbeat.HEARTBEAT_SECONDS", 0.01)


@pytest.fixture
def database():
    database = MemoryDatabase()
    database.create({})
    return database


def test_a_stop_counts_from_the_first_state_on_and_stays():
    signal = StopSignal(State(stop=3))
    assert not signal.hear(State(stop=3))
    assert signal.hear(State(stop=4)) and signal.is_set
    assert signal.hear(State(stop=0))


def test_a_server_that_came_back_empty_is_no_stop_but_a_stop_after_it_is():
    signal = StopSignal(State(stop=3))
    assert not signal.hear(State(stop=0))
    assert signal.hear(State(stop=1))


def test_a_beat_tells_what_the_worker_waits_for_and_hears_the_state(database):
    waiting = Waiting()
    heartbeat = Heartbeat(database, new_worker("play"), waiting)
    assert database.workers()[0].waits_for == ""
    waiting.set("weights")
    database.report(update=7)
    assert heartbeat.beat().update == heartbeat.state.update == 7
    (worker,) = database.workers()
    assert worker.waits_for == "weights" and worker.waits_seconds > 0 and worker.uptime > 0
    database.ask_stop()
    assert not heartbeat.stop.is_set
    heartbeat.hear(database.state())  # as a push brings it
    assert heartbeat.stop.is_set


def background(database, fails=0):
    """A worker's heartbeat; the server is not found at the first attempts."""
    attempts = []

    @contextlib.contextmanager
    def connect():
        attempts.append(1)
        if len(attempts) <= fails:
            raise ServerError("there is no server.")
        yield database

    return BackgroundHeartbeat(connect, new_worker("eval"), Waiting())


@pytest.mark.parametrize("fails", [0, 2])
def test_beside_other_work_it_beats_until_its_owner_leaves(database, fails):
    with background(database, fails) as heartbeat:
        until(database.workers)
        heartbeat.waiting.set("newer weights")
        until(lambda: database.workers()[0].waits_for == "newer weights")
        assert not heartbeat.stopped
        database.ask_stop()
        until(lambda: heartbeat.stopped)
    assert database.workers() == [] and not heartbeat.is_alive()


def test_a_lost_database_does_not_end_it(database):
    flaky = Flaky(database, "beat", before={0, 1, 3, 4})
    with background(flaky) as heartbeat:
        until(lambda: flaky.calls > 7)
        assert heartbeat.is_alive()


def test_a_viewer_may_not_beat_and_needs_not():
    class Viewers(MemoryDatabase):
        def beat(self, worker):
            raise DatabaseError("this user may only look.")

    with background(Viewers()) as heartbeat:
        until(lambda: not heartbeat.is_alive())
        assert not heartbeat.stopped
