"""Database: where players and trainers meet. Bytes in, bytes out; it knows nothing of arrays.

MemoryDatabase (one process), RedisDatabase and SignedDatabase (around either) pass one contract suite. A user's own class
works too (`--database module:Class`). Losing a database loses the replay, never the run: the trainer's checkpoint is
the truth.

A session has an id "milliseconds-number". Ids only grow within one incarnation of a run. A reader's cursor is the
id of the newest session that it has read.

    player                                  trainer
      append(blobs) -> State                  create(meta), acquire_lease(holder)
      get_weights(newer_than)                 read(after, limit) -> blobs, State
                                              report(sampled=…, cursor=…) before each update
                                              put_weights(blob, version, holder=…, run_id=…)
"""

import abc
import contextlib
import dataclasses
import os
import re
import secrets
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyverse.core.errors import DatabaseError, LeaseLost, RunConflict
from tinyverse.core.system import is_gone, this_machine

BEGINNING = "0-0"  # the cursor of a reader who has read nothing
WEIGHTS_KEPT = 3
LOG_KEPT = 10_000  # rows of each of the two short logs: episodes and metrics
ERRORS_KEPT = 100  # with their tracebacks
HEARTBEAT_SECONDS = 1.0  # between two heartbeats of a worker
RETRY_SECONDS = 0.5  # before a worker tries a lost database again
STALE_AFTER = 15.0  # seconds without a heartbeat after which a worker counts as gone
LEASE_SECONDS = 10.0
DAMAGED = b"damaged"  # in place of a session whose checksum differs; no session looks like this
UNSIGNED = b"unsigned"  # in place of a session whose signature is wrong; no session looks like this
WRONG_SIGNATURE = "its signature is missing or made with another secret. Set the same TINYVERSE_SECRET everywhere."
REPORTED = ("update", "step", "sampled", "reuse", "max_ahead", "capacity", "cursor")  # of State, by the trainer
KEPT_BY_CLEAR = ("update", "step", "capacity", "stop")  # of State, when the weights are kept
Episodes = Iterable[Mapping[str, Any]]  # {"return": …, "length": …} of each that ended


@dataclasses.dataclass(frozen=True)
class State:
    """A run at one instant; every round trip of a worker brings one back."""

    run_id: str = ""  # random id of this incarnation of the run; "" until a trainer has created it
    version: int = -1  # newest published weights; -1 before the first
    update: int = 0  # the trainer's updates so far
    step: int = 0  # agent steps learned from so far
    inserted: int = 0  # sessions ever appended
    sampled: float = 0.0  # sessions sampled for training; lost and expired ones count as sampled
    reuse: float = 1.0  # wanted deliveries per session
    max_ahead: float | None = None  # how far inserted·reuse may be ahead of sampled; None: nobody waits
    capacity: int = 5000  # sessions kept
    stop: int = 0  # how often the run was asked to stop; a worker leaves when it grows
    cursor: str = BEGINNING  # how far the trainer has learned

    @property
    def deficit(self) -> float:
        """Deliveries still owed to the sessions inserted so far."""
        return self.inserted * self.reuse - self.sampled

    @property
    def may_play(self) -> bool:
        """Whether a player may begin a session."""
        return self.max_ahead is None or self.deficit <= self.max_ahead


@dataclasses.dataclass
class Worker:
    """What a worker says of itself in each heartbeat."""

    id: str
    role: str  # play, human, train, eval
    host: str = ""
    pid: int = 0
    num_envs: int = 0
    steps: int = 0
    steps_per_second: float = 0.0
    version: int = -1
    lag: float = 0.0  # in updates, mean over recent sessions
    frame_skip: int = 1  # frames per step
    stages: dict[str, float] = dataclasses.field(default_factory=dict)  # share of a player's time (0 … 1) in each
    sessions: int = 0
    dropped: int = 0  # sessions that a real-time player could not wait to push
    faults: int = 0  # environments that failed and were built anew
    uptime: float = 0.0  # seconds
    waits_for: str = ""
    waits_seconds: float = 0.0
    error: str = ""  # the last one
    seen: float = 0.0  # seconds since the heartbeat, set by the database when read


class Database(abc.ABC):
    """The meeting place of one run. Methods are safe to call from several threads.

    Raises `DatabaseLost` when it cannot be reached (the caller may retry), `DatabaseError` when it says no.
    """

    @abc.abstractmethod
    def create(self, meta: Mapping[str, str]) -> dict[str, str]:
        """Creates the run with `meta` and a random `run_id`, unless it exists; returns the meta in force."""

    @abc.abstractmethod
    def meta(self) -> dict[str, str]:
        """What `create` stored; {} when the run does not exist."""

    @abc.abstractmethod
    def state(self) -> State: ...

    @abc.abstractmethod
    def ask_stop(self) -> None:
        """Asks every worker of the run to finish and leave (`State.stop` grows by one)."""

    @abc.abstractmethod
    def clear(self, keep_weights: bool = False) -> None:
        """Removes the run; with `keep_weights`, only its sessions, workers, counters and logs."""

    def close(self) -> None:  # noqa: B027
        """Gives back connections. The run stays."""

    @abc.abstractmethod
    def append(self, blobs: Sequence[bytes], *, worker: Worker | None = None, episodes: Episodes = ()) -> State:
        """Appends sessions (the newest `State.capacity` are kept), a heartbeat and finished episodes, all or nothing.

        Never retried here: an append that failed half-way may have arrived, so sessions carry (player, sequence).
        """

    @abc.abstractmethod
    def read(self, after: str, limit: int, wait: float = 0.0) -> tuple[list[tuple[str, bytes]], State]:
        """Up to `limit` (session id, session) after the cursor `after`, oldest first, and the State at that very instant.

        Fewer than `limit` means the end was reached: everything inserted so far was read or is gone.
        Waits up to `wait` seconds for the first one. A cursor that was trimmed away reads from the oldest kept; it
        is good for one run_id.
        """

    def newest(self, limit: int) -> list[tuple[str, bytes]]:
        """The newest `limit` sessions, oldest first. A database that need not read all for it overrides this."""
        found: deque[tuple[str, bytes]] = deque(maxlen=limit)
        after = BEGINNING
        while entries := self.read(after, 64)[0]:
            found.extend(entries)
            after = entries[-1][0]
        return list(found)

    @abc.abstractmethod
    def put_weights(
        self, blob: bytes, version: int, *, holder: str, update: int = 0, step: int = 0, run_id: str | None = None
    ) -> None:
        """Publishes weights; version, blob, update and step change together. Keeps the newest 3 versions.

        Args:
            run_id: of the incarnation of the run that the weights belong to; None: whichever there is.

        Raises:
            RunConflict: the run is gone, or another incarnation of it is there. So a trainer never leaves weights without a
                run, nor in a run that began after them.
            LeaseLost: `holder` does not hold the lease, or `version` is not above the newest.
        """

    @abc.abstractmethod
    def get_weights(self, newer_than: int = -1, version: int | None = None) -> tuple[int, bytes] | None:
        """(version, blob) of the newest weights if newer than `newer_than`, or of exactly `version`; else None."""

    @abc.abstractmethod
    def acquire_lease(self, holder: str) -> bool:
        """Takes or renews (10 s) the right to publish; False while another holds it. `holder` is "machine:pid:random"."""

    @abc.abstractmethod
    def release_lease(self, holder: str) -> None:
        """Gives the lease back, if `holder` has it."""

    @abc.abstractmethod
    def beat(self, worker: Worker) -> State:
        """A heartbeat alone."""

    @abc.abstractmethod
    def leave(self, worker_id: str) -> None:
        """Removes a worker's heartbeat."""

    @abc.abstractmethod
    def workers(self) -> list[Worker]:
        """Everyone heard of within `STALE_AFTER` seconds."""

    @abc.abstractmethod
    def report(self, **numbers: Any) -> None:
        """Sets any of State's update, step, sampled, reuse, max_ahead, capacity (at once), cursor; TypeError for others."""

    @abc.abstractmethod
    def count(self, **numbers: int) -> None:
        """Adds to counters such as `rejected`, `dropped`, `expired`."""

    @abc.abstractmethod
    def counters(self) -> dict[str, int]: ...

    @abc.abstractmethod
    def episodes(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest finished episodes, oldest first."""

    @abc.abstractmethod
    def log_metrics(self, row: Mapping[str, Any]) -> None: ...

    @abc.abstractmethod
    def metrics(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest rows of the trainer's log, oldest first."""

    def log_error(self, row: Mapping[str, Any]) -> None:  # noqa: B027
        """Keeps what ended a worker: role, host, pid, error, traceback. A database may leave it out."""

    def errors(self, limit: int = 10) -> list[dict[str, Any]]:
        """The newest errors logged, oldest first."""
        return []

    @property
    def unreadable(self) -> int:
        """Rows and heartbeats that the last look at them passed over, as nobody could make sense of them."""
        return 0

    @abc.abstractmethod
    def size(self) -> dict[str, int]:
        """`sessions` kept and the `bytes` they take (an estimate)."""


def new_worker(role: str, **facts: Any) -> Worker:
    """A worker's first heartbeat, with an id of its own: a cloned machine is another worker."""
    return Worker(id=f"{role}-{secrets.token_hex(6)}", role=role, host=socket.gethostname(), pid=os.getpid(), **facts)


def log_error(database: Database, worker: Worker, error: BaseException) -> None:
    """Leaves what ended a worker in the database, for `info --errors`."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return
    row = {
        "role": worker.role, "host": worker.host, "pid": worker.pid, "when": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "error": f"{type(error).__name__}: {error}"[:1000], "traceback": "".join(traceback.format_exception(error))[-10_000:],
    }  # fmt: skip
    with contextlib.suppress(DatabaseError):  # the worker raises it all the same
        database.log_error(row)


def holder_is_dead(holder: str) -> bool:
    """Whether the holder was a process of this machine that is gone; False when that cannot be known."""
    machine, _, pid = holder.rpartition(":")[0].rpartition(":")
    return machine == this_machine() and pid.isdigit() and is_gone(int(pid))


def check_incarnation(wanted: str | None, found: str, version: int) -> None:
    """Raises RunConflict unless weights of the run_id `wanted` may go into the run of the run_id `found`, "" if it is gone."""
    if wanted is not None and (wanted != found or not found):
        there = "another has taken its place" if found else "it is gone from the database"
        raise RunConflict(f"weights version {version} belong to a run that is no more: {there}.")


def check_fence(holder: str, version: int, held_by: str, newest: int) -> None:
    """Raises LeaseLost unless `holder` has the lease and `version` is above the newest."""
    if held_by != holder:
        raise LeaseLost(f"{holder} may not publish version {version}: the lease is held by {held_by or 'nobody'}.")
    if version <= newest:
        raise LeaseLost(f"{holder} may not publish version {version}: version {newest} is out already.")


def check_report(numbers: Mapping[str, Any]) -> None:
    """Raises TypeError for names that `Database.report` does not set."""
    if unknown := sorted(set(numbers) - set(REPORTED)):
        raise TypeError(f"report() sets {', '.join(REPORTED)}, not {', '.join(unknown)}.")


def is_session_id(text: str) -> bool:
    """Whether the text is the id of a session, as `sessions ls` prints it."""
    return re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", text) is not None


def is_behind(session_id: str, reader: str) -> bool:
    """Whether a reader at the cursor `reader` has passed the session `session_id`."""
    return to_numbers(session_id) <= to_numbers(reader)


def furthest(*session_ids: str) -> str:
    """The cursor that has come furthest.

    >>> furthest("5-9", "10-0", "5-10")
    '10-0'
    """
    return max(session_ids, key=to_numbers)


def just_before(session_id: str) -> str:
    """The cursor from which a reader finds the session `session_id` first."""
    first, second = to_numbers(session_id)
    return f"{first}-{second - 1}" if second else f"{max(first - 1, 0)}-{2**64 - 1}"


def to_cursor(text: str) -> str:
    """The text itself. Raises ValueError where it is no session's id."""
    if not is_session_id(text):
        raise ValueError(f"{text[:40]!r} is no cursor")
    return text


def to_numbers(session_id: str) -> list[int]:
    """
    >>> to_numbers("17-2")
    [17, 2]
    """
    first, second = session_id.split("-")
    return [int(first), int(second)]
