"""BackgroundThread: it goes on where the database is lost, ends where anything else fails, and closes in time."""

from __future__ import annotations

import threading

import pytest

from tests.helpers.people import until
from tinyverse.core.errors import DatabaseLost
from tinyverse.core.threads import BackgroundThread


def test_a_lost_database_is_tried_again_and_told():
    lost, steps = [], []

    def step():
        steps.append(1)
        if len(steps) < 4:
            raise DatabaseLost("gone")
        thread.closing.wait(0.01)

    thread = BackgroundThread("test", step, pause=0.001, on_lost=lost.append)
    thread.start()
    until(lambda: len(steps) > 5)
    thread.close()
    assert not thread.is_alive() and len(lost) == 3
    thread.raise_failure()  # there is none


def test_any_other_error_ends_it_and_is_raised_by_its_owner():
    def step():
        raise ZeroDivisionError("of the step")

    thread = BackgroundThread("test", step, pause=0.001)
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive()
    with pytest.raises(ZeroDivisionError, match="of the step"):
        thread.raise_failure()


def test_closing_finishes_the_work_that_is_left():
    left, gate = [3, 2, 1], threading.Event()

    def step():
        gate.wait(5.0)
        left.pop()

    thread = BackgroundThread("test", step, pause=0.001, unfinished=lambda: bool(left))
    thread.start()
    thread.closing.set()
    gate.set()
    thread.close()
    assert left == [] and not thread.is_alive()


def test_closing_gives_up_in_time():
    def step():
        raise DatabaseLost("gone")

    thread = BackgroundThread("test", step, pause=0.001, unfinished=lambda: True)
    thread.start()
    thread.close(seconds=0.05)
    until(lambda: not thread.is_alive())


def test_one_that_never_began_is_closed_at_once():
    BackgroundThread("test", lambda: None, pause=1.0).close()
