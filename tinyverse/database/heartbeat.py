"""Heartbeat: a worker says what it does and hears the run's State in return, with it whether to stop."""

from __future__ import annotations

import time

from tinyverse.core.timing import Waiting
from tinyverse.database.base import Database, State, Worker


class StopSignal:
    """Whether the run was asked to stop since `state` was read; stays set.

    `State.stop` counts how often that was asked. A server that came back empty counts from 0 again.
    """

    def __init__(self, state: State) -> None:
        self.is_set = False
        self._count = state.stop

    def hear(self, state: State) -> bool:
        """Takes a newer State in; returns `is_set`."""
        self.is_set = self.is_set or state.stop > self._count
        self._count = min(self._count, state.stop)
        return self.is_set


class Heartbeat:
    """What a worker tells the database, and the newest State that the database answered.

    Args:
        worker: the facts that are sent; `waits_for`, `waits_seconds` and `uptime` are kept up to date here.
        waiting: what the worker waits for.
    Raises:
        DatabaseLost: by the constructor and by `beat`, where the database cannot be reached.
    """

    def __init__(self, database: Database, worker: Worker, waiting: Waiting) -> None:
        self.database, self.worker, self.waiting = database, worker, waiting
        self._began = time.monotonic()
        self.state = database.beat(self.now())
        self.stop = StopSignal(self.state)

    def now(self) -> Worker:
        """The worker as it is at this moment."""
        worker = self.worker
        worker.waits_for, worker.waits_seconds = self.waiting.reason, self.waiting.seconds
        worker.uptime = time.monotonic() - self._began
        return worker

    def beat(self) -> State:
        """Sends the worker and hears the State."""
        return self.hear(self.database.beat(self.now()))

    def hear(self, state: State) -> State:
        """Takes in a State that came with something else, such as sessions pushed."""
        self.state = state
        self.stop.hear(state)
        return state
