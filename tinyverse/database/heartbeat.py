"""Heartbeat: a worker says what it does and hears the run's State in return, with it whether to stop."""

import contextlib
import time
from collections.abc import Callable

from tinyverse.core.errors import DatabaseError, DatabaseLost, ServerError
from tinyverse.core.threads import BackgroundThread
from tinyverse.core.timing import Waiting
from tinyverse.database.base import HEARTBEAT_SECONDS, Database, State, Worker


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


class BackgroundHeartbeat(BackgroundThread):
    """Beats once a second, by a connection of its own, while its owner is busy; a context manager.

    The owner changes the facts of `worker` and `waiting` as it works. Where no database is reached, the thread tries
    again; where the database refuses heartbeats (to a viewer), it ends.

    Args:
        connect: opens the run's database.
    """

    def __init__(
        self, connect: Callable[[], contextlib.AbstractContextManager[Database]], worker: Worker, waiting: Waiting
    ) -> None:
        super().__init__("heartbeat", self._turn, pause=HEARTBEAT_SECONDS)
        self.worker, self.waiting, self._connect = worker, waiting, connect
        self._connection = contextlib.ExitStack()
        self._heartbeat: Heartbeat | None = None

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop since the first beat."""
        return self._heartbeat is not None and self._heartbeat.stop.is_set

    def __enter__(self) -> "BackgroundHeartbeat":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._heartbeat is not None:
            with contextlib.suppress(DatabaseError):
                self._heartbeat.database.leave(self.worker.id)
        self._connection.close()

    def _turn(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.beat()
        else:
            self._connection.close()  # that of a first beat which failed
            try:
                database = self._connection.enter_context(self._connect())
            except ServerError as error:
                raise DatabaseLost(str(error)) from error
            self._heartbeat = Heartbeat(database, self.worker, self.waiting)
        self.closing.wait(HEARTBEAT_SECONDS)
