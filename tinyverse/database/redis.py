"""RedisDatabase: the meeting place on a Redis or Valkey server, so that players and trainers may be anywhere.

Every key is spelled in `schema`. Sessions are one stream: their order, ids that only grow and a bounded length
come with it. What must agree is written in one MULTI, what must be checked first is WATCHed, and nothing is scripted.
Time is the server's: a client knows how far its own steady clock is from it, because every reply brings the server's
along.
"""

import contextlib
import functools
import heapq
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import redis
import xxhash

from tinyverse.core.errors import DatabaseError, DatabaseLost, SettingsError
from tinyverse.core.text import printable
from tinyverse.database import base
from tinyverse.database.base import Database, Episodes, State, Worker
from tinyverse.database.connection import connect, errors
from tinyverse.database.schema import (
    COUNTER,
    Keys,
    decode_heartbeat,
    decode_row,
    encode_heartbeat,
    encode_row,
    to_number,
)  # fmt: skip

log = logging.getLogger(__name__)

LARGEST = 256 << 20  # bytes in one request; the local server cuts the line at more
BLOCK = 1.0  # seconds a read waits on the server at a time, well below the client's timeout
WEIGHTS_TRIES = 5
MOST_WORKERS = 1000  # told of, those heard of last
MOST_HEARTBEATS = 20_000  # read at once; the others when those are stale
MOST_COUNTERS = 100
FAR_AHEAD = 86_400_000  # milliseconds; no server's clock is set back so far, so who wrote such an id did not ask it
_WHOLE, _REAL = (functools.partial(to_number, kind=kind) for kind in (int, float))
_STAT: dict[str, Callable[[str], Any]] = {
    "update": _WHOLE, "step": _WHOLE, "sampled": _REAL, "reuse": _REAL,
    "max_ahead": lambda text: _REAL(text) if text else None, "capacity": _WHOLE, "stop": _WHOLE, "cursor": base.to_cursor,
}  # fmt: skip


class RedisDatabase(Database):
    """One run on a server. Threads may share it; each method is one round trip unless it says otherwise.

    Args:
        url, name, timeout: as of `connect`.
    """

    def __init__(self, url: str, run: str, *, name: str = "tinyverse", timeout: float = 5.0) -> None:
        if timeout <= BLOCK:
            raise SettingsError(
                f"A timeout of {timeout} s must be above the {BLOCK} s that a read waits on the server."
            )
        self.run = run
        self._url = url
        self._keys = Keys(run)
        self._connect = functools.partial(connect, url, name=name, timeout=timeout)
        self._client: Any = None  # as long as the server is not lost
        self._capacity = State.capacity  # as of the last State
        self._clock: float | None = None  # the server's time minus ours, seconds
        self._unreadable: dict[str, int] = {}  # rows of each log and heartbeats that the last look passed over
        self._stream_is_spoilt = False  # a session's id lies far ahead, so others may find no place behind it

    def __repr__(self) -> str:
        return f"RedisDatabase(run={self.run!r})"

    def create(self, meta: Mapping[str, str]) -> dict[str, str]:
        keys = self._keys

        def write(pipe: Any) -> None:
            there = pipe.hget(keys.meta, "run_id")
            pipe.multi()
            if there is None:
                pipe.hset(keys.meta, mapping={**meta, "run_id": secrets.token_hex(8)})

        self._change(write, keys.meta)
        with errors(self._url), self._connect(key=Keys.RUNS) as client:  # of a cluster, another node may have the list
            client.sadd(Keys.RUNS, self.run)
        return self.meta()

    def meta(self) -> dict[str, str]:
        with self._server() as client:
            stored = client.hgetall(self._keys.meta)
            return {name.decode(): text.decode() for name, text in stored.items()}

    def state(self) -> State:
        return self._ask()[1]

    def ask_stop(self) -> None:
        self._change(lambda pipe: pipe.hincrby(self._keys.stat, "stop", 1))

    def clear(self, keep_weights: bool = False) -> None:
        keys = self._keys

        def remove(pipe: Any) -> None:
            versions = _names(pipe, keys.current)
            gone = [name for name in _names(pipe, keys.stat) if _text(name) not in base.KEPT_BY_CLEAR]
            pipe.multi()
            pipe.unlink(keys.heartbeats, keys.tally, keys.episodes, keys.metrics, keys.errors)
            if not keep_weights:
                weights = [keys.weights(_text(name)[5:]) for name in versions if name.startswith(b"xxh3:")]
                pipe.unlink(keys.sessions, keys.meta, keys.current, keys.lease, keys.stat, *weights)
                return
            pipe.xtrim(keys.sessions, maxlen=0, approximate=False)  # not unlinked: its ids go on growing in this run_id
            if gone:
                pipe.hdel(keys.stat, *gone)

        self._change(remove, keys.current)
        if not keep_weights:
            with errors(self._url), self._connect(key=Keys.RUNS) as client:
                client.srem(Keys.RUNS, self.run)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def append(self, blobs: Sequence[bytes], *, worker: Worker | None = None, episodes: Episodes = ()) -> State:
        keys, rows, size = self._keys, [encode_row(row) for row in episodes], sum(map(len, blobs))
        _check_size(size, "These sessions")
        if self._clock is None:
            self.state()  # once: the capacity and the server's time are not known yet

        def write(pipe: Any) -> None:
            for blob in blobs:
                entry = ("s", blob, "xxh3", xxhash.xxh3_64_digest(blob))
                pipe.execute_command("XADD", keys.sessions, "MAXLEN", self._capacity, "*", *entry)
            for row in rows:
                pipe.xadd(keys.episodes, {"row": row}, maxlen=base.LOG_KEPT, approximate=False)
            if blobs:
                pipe.hincrby(keys.tally, "inserted", len(blobs))
                pipe.hincrby(keys.tally, "bytes", size)
            if worker:
                pipe.hset(keys.heartbeats, worker.id, encode_heartbeat(worker, self._now()))

        try:
            return self._ask(write)[1]
        except DatabaseError as error:
            place = _at_its_end(error)
            if not place:
                raise
            if place <= len(blobs):
                raise DatabaseLost(f"run {self.run} takes no sessions now: {error}") from error  # the trainer mends it
            return self.state()  # all but the log of episodes or a counter was written

    def read(self, after: str, limit: int, wait: float = 0.0) -> tuple[list[tuple[str, bytes]], State]:
        sessions, ends = self._keys.sessions, time.monotonic() + wait
        while True:
            (entries,), state = self._ask(lambda pipe: pipe.xrange(sessions, min=f"({after}", count=limit))
            latest = 1000 * self._now() + FAR_AHEAD
            sound = [entry for entry in entries if base.to_numbers(entry[0].decode())[0] <= latest]
            self._stream_is_spoilt = self._stream_is_spoilt or len(sound) < len(entries)
            left = ends - time.monotonic()
            if sound or left <= 0 or self._stream_is_spoilt:
                return _blobs(sound), state
            with self._server() as client:
                client.xread({sessions: after}, count=1, block=max(1, int(1000 * min(left, BLOCK))))

    def newest(self, limit: int) -> list[tuple[str, bytes]]:
        with self._server() as client:
            return _blobs(client.xrevrange(self._keys.sessions, count=limit)[::-1])

    def put_weights(
        self, blob: bytes, version: int, *, holder: str, update: int = 0, step: int = 0, run_id: str | None = None
    ) -> None:
        _check_size(len(blob), f"Weights version {version}")
        keys, checksum = self._keys, xxhash.xxh3_64_hexdigest(blob)

        def publish(pipe: Any) -> None:
            lease, current = pipe.get(keys.lease), pipe.hgetall(keys.current)
            base.check_incarnation(run_id, _text(pipe.hget(keys.meta, "run_id")), version)
            base.check_fence(holder, version, _text(lease), int(current.get(b"version", -1)))
            old = sorted(_checksums(current))[: -(base.WEIGHTS_KEPT - 1)]
            pipe.multi()
            pipe.set(keys.weights(version), blob)
            numbers = {"update": int(update), "step": int(step)}
            pipe.hset(keys.current, mapping={"version": version, f"xxh3:{version}": checksum, **numbers})
            pipe.hset(keys.stat, mapping=numbers)
            if old:
                pipe.hdel(keys.current, *(f"xxh3:{number}" for number in old))
                pipe.unlink(*map(keys.weights, old))

        self._change(publish, keys.meta, keys.lease, keys.current)

    def get_weights(self, newer_than: int = -1, version: int | None = None) -> tuple[int, bytes] | None:
        keys = self._keys
        with self._server() as client:
            for _ in range(WEIGHTS_TRIES):  # again when newer weights pushed these out between the two requests
                current = client.hgetall(keys.current)
                wanted = int(current.get(b"version", -1)) if version is None else version
                checksum = _checksums(current).get(wanted)
                if checksum is None or (version is None and wanted <= newer_than):
                    return None
                blob = client.get(keys.weights(wanted))
                if blob is not None and xxhash.xxh3_64_hexdigest(blob) == checksum:
                    return wanted, blob
        raise DatabaseError(
            f"Weights version {wanted} of run {self.run} are missing or damaged; the next publication replaces them."
        )

    def acquire_lease(self, holder: str) -> bool:
        lease = self._keys.lease

        def take(pipe: Any) -> None:
            held = _text(pipe.get(lease))
            pipe.multi()
            if held in ("", holder) or base.holder_is_dead(held):
                pipe.set(lease, holder, px=int(1000 * base.LEASE_SECONDS))

        return bool(self._change(take, lease))

    def release_lease(self, holder: str) -> None:
        lease = self._keys.lease

        def free(pipe: Any) -> None:
            held = _text(pipe.get(lease))
            pipe.multi()
            if held == holder:
                pipe.unlink(lease)

        self._change(free, lease)

    def beat(self, worker: Worker) -> State:
        return self.append([], worker=worker)

    def leave(self, worker_id: str) -> None:
        with self._server() as client:
            client.hdel(self._keys.heartbeats, worker_id)

    def workers(self) -> list[Worker]:
        """Everyone heard of within `STALE_AFTER` seconds; who was not is removed (and back with the next heartbeat)."""
        (beats,), _ = self._ask(lambda pipe: pipe.hgetall(self._keys.heartbeats))
        some, now = itertools.islice(beats.items(), MOST_HEARTBEATS), self._now()
        everyone = {key: decode_heartbeat(text, now) for key, text in some}
        stale = [key for key, worker in everyone.items() if worker is None or worker.seen >= base.STALE_AFTER]
        if stale:
            with contextlib.suppress(DatabaseError), self._server() as client:  # who may only look leaves them there
                client.hdel(self._keys.heartbeats, *stale)
        self._unreadable[self._keys.heartbeats] = sum(worker is None for worker in everyone.values())
        alive = [worker for worker in everyone.values() if worker is not None and worker.seen < base.STALE_AFTER]
        return heapq.nsmallest(MOST_WORKERS, alive, key=lambda worker: worker.seen)

    def report(self, **numbers: Any) -> None:
        base.check_report(numbers)
        texts = {name: "" if number is None else str(_STAT[name](number)) for name, number in numbers.items()}

        def write(pipe: Any) -> None:
            if texts:
                pipe.hset(self._keys.stat, mapping=texts)
            if "capacity" in numbers:
                self._capacity = int(numbers["capacity"])
                pipe.xtrim(self._keys.sessions, maxlen=self._capacity, approximate=False)
            if self._stream_is_spoilt:
                log.warning("Sessions of run %s lie far ahead of the server's time. All are removed.", self.run)
                pipe.unlink(self._keys.sessions)

        self._change(write)
        self._stream_is_spoilt = False

    def count(self, **numbers: int) -> None:
        def write(pipe: Any) -> None:
            for name, number in numbers.items():
                pipe.hincrby(self._keys.tally, COUNTER + name, int(number))

        try:
            self._change(write)
        except DatabaseError as error:
            if not _at_its_end(error):
                raise

    def counters(self) -> dict[str, int]:
        with self._server() as client:
            tally = client.hgetall(self._keys.tally)
            named = ((printable(_text(name)), to_number(_text(number), int)) for name, number in tally.items())
            counted = {name.removeprefix(COUNTER): number for name, number in named if name.startswith(COUNTER)}
        return dict(itertools.islice(counted.items(), MOST_COUNTERS))

    @property
    def unreadable(self) -> int:
        return sum(self._unreadable.values())

    def episodes(self, limit: int = 100) -> list[dict[str, Any]]:
        return self._newest(self._keys.episodes, limit)

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        self._log(self._keys.metrics, row, base.LOG_KEPT)

    def metrics(self, limit: int = 100) -> list[dict[str, Any]]:
        return self._newest(self._keys.metrics, limit)

    def log_error(self, row: Mapping[str, Any]) -> None:
        self._log(self._keys.errors, row, base.ERRORS_KEPT)

    def errors(self, limit: int = 10) -> list[dict[str, Any]]:
        return self._newest(self._keys.errors, limit)

    def size(self) -> dict[str, int]:
        """`sessions` kept, and `bytes`: as many times the mean size of all sessions so far."""
        with self._server() as client, client.pipeline(transaction=False) as pipe:
            pipe.xlen(self._keys.sessions)
            pipe.hmget(self._keys.tally, "inserted", "bytes")
            kept, (inserted, size) = pipe.execute()
            count, total = (max(1, to_number(_text(number or b"0"), int)) for number in (inserted, size))
        return {"sessions": kept, "bytes": round(kept * total / count)}

    @contextlib.contextmanager
    def _server(self) -> Iterator[Any]:
        """The server's client, its errors translated. Who was lost is looked for again: a run may move in a cluster."""
        try:
            with errors(self._url):
                self._client = client = self._client or self._connect(key=self._keys.meta)
                yield client
        except DatabaseLost:
            self._client = None
            raise

    def _ask(self, add: Callable[[Any], object] = lambda pipe: None) -> tuple[list[Any], State]:
        """Runs what `add` queues and reads the State, at one instant (MULTI); (replies to what was added, State)."""
        keys = self._keys

        def ask(pipe: Any) -> None:
            add(pipe)
            pipe.hget(keys.meta, "run_id").hget(keys.current, "version").hmget(keys.stat, list(_STAT))
            pipe.hget(keys.tally, "inserted").time()

        *replies, run_id, version, numbers, inserted, (seconds, microseconds) = self._change(ask)
        with errors(self._url):
            known = {
                name: parse(text.decode())
                for (name, parse), text in zip(_STAT.items(), numbers, strict=True)
                if text is not None
            }
            known |= {"run_id": (run_id or b"").decode(), "inserted": max(0, int(inserted or 0))}
            state = State(version=-1 if version is None else to_number(version.decode(), int), **known)
        self._clock = seconds + microseconds * 1e-6 - time.monotonic()
        self._capacity = state.capacity
        return replies, state

    def _change(self, function: Callable[[Any], object], *watched: str) -> list[Any]:
        """Runs what `function` queues, all or nothing; returns the replies.

        A function of watched keys reads them, calls `pipe.multi()`, then writes; from the start again when one changed in
        between. A full server refuses any MULTI. The oldest quarter of our sessions is then dropped: a cache must not
        wedge a run.
        """
        try:
            with self._server() as client:
                return client.transaction(function, *watched)
        except DatabaseError as error:
            if not isinstance(error.__cause__, redis.OutOfMemoryError):
                raise
        with self._server() as client:
            kept = client.xlen(self._keys.sessions) * 3 // 4
            log.warning("The server is full; run %s keeps its newest %d sessions only.", self.run, kept)
            client.xtrim(self._keys.sessions, maxlen=kept, approximate=False)
            return client.transaction(function, *watched)

    def _log(self, key: str, row: Mapping[str, Any], kept: int) -> None:
        entry = {"row": encode_row(row)}
        try:
            self._change(lambda pipe: pipe.xadd(key, entry, maxlen=kept, approximate=False))
        except DatabaseError as error:
            if not _at_its_end(error):
                raise
            log.warning("The log %s takes no more rows and begins anew.", key)
            self._change(lambda pipe: pipe.unlink(key).xadd(key, entry))

    def _newest(self, stream: str, limit: int) -> list[dict[str, Any]]:
        if limit <= 0:
            return []
        with self._server() as client:
            entries = client.xrevrange(stream, count=limit)
        rows = [row for _, fields in reversed(entries) if (row := decode_row(fields.get(b"row", b""))) is not None]
        self._unreadable[stream] = len(entries) - len(rows)
        return rows

    def _now(self) -> float:
        """The server's time in seconds, by our steady clock since its last reply."""
        return time.monotonic() + (self._clock or 0.0)


def remove_keys(url: str, run: str) -> None:
    """Removes every key of a run, also those that tinyverse does not know; the server's user must be allowed to SCAN."""
    prefix = Keys(run).weights("")[: -len("w:")]
    with errors(url), connect(url, key=Keys(run).meta) as client:
        for key in client.scan_iter(match=f"{prefix}*", count=1000):
            client.unlink(key)


def list_runs(url: str) -> list[str]:
    """The names of the runs on a server, sorted."""
    with errors(url), connect(url, key=Keys.RUNS) as client:
        names: Any = client.smembers(Keys.RUNS)
        return sorted(printable(_text(name)) for name in names)


def _blobs(entries: Any) -> list[tuple[str, bytes]]:
    """(id, session) of each entry; DAMAGED in place of one that is not what was sent. The first versions sent no checksum."""

    def whole(fields: Mapping[bytes, bytes]) -> bytes:
        blob, checksum = fields.get(b"s", b""), fields.get(b"xxh3")
        return blob if checksum is None or checksum == xxhash.xxh3_64_digest(blob) else base.DAMAGED

    return [(key.decode(), whole(fields)) for key, fields in entries]


def _check_size(size: int, what: str) -> None:
    if size > LARGEST:
        raise DatabaseError(
            f"{what} take {size >> 20} MiB; at most {LARGEST >> 20} MiB can be sent at once. Make them smaller."
        )


def _checksums(current: Mapping[bytes, bytes]) -> dict[int, str]:
    """{version: checksum} of the weights kept."""
    return {int(name[5:]): text.decode() for name, text in current.items() if name.startswith(b"xxh3:")}


def _names(pipe: Any, key: str) -> list[bytes]:
    """The names in a hash; none where something else lies there."""
    try:
        return list(pipe.hgetall(key))
    except redis.ResponseError:
        return []


def _at_its_end(error: DatabaseError) -> int:
    """The number of the first command whose counter or stream is at the end of its range, all others being done; 0 if none is."""
    ends = r"Command # (\d+) .*(would overflow|smaller than the target|exhausted the last)"
    found = re.match(ends, str(error.__cause__), re.DOTALL)
    return int(found[1]) if found else 0


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace") if value else ""
