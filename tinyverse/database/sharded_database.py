"""ShardedDatabase: a run whose sessions lie in several streams, on as many servers, for when one is not enough.

The first server holds all of a run but its sessions: weights, run_config, heartbeats, counters. A player pushes to one
stream, chosen by its name, and then sends the first server its heartbeat and how many sessions those were, so that all
know how far players are ahead. A trainer reads the streams in turn. One that cannot be reached holds up its own players
only: the trainer reads on from the others until it is back, with what it had or empty.

    redis://a                --shards 4     four streams there; on a Redis Cluster, in four slots
    redis://a,redis://b                     one stream on each
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyverse.core.errors import DatabaseError, DatabaseLost, RunConflict, SettingsError
from tinyverse.core.text import counted
from tinyverse.database.base import BEGINNING, Database, State, Worker
from tinyverse.database.position import joined, split
from tinyverse.database.redis import RedisDatabase, misplaced, place_of
from tinyverse.database.schema import PLACES, SHARD
from tinyverse.database.server import errors, several
from tinyverse.database.signing import Seal, seal_of

log = logging.getLogger(__name__)

PAUSE = 0.05  # seconds that all streams together are waited on in one round
RETRY = 1.0  # seconds until a lost stream is tried again
PATIENCE = 5.0  # seconds in which a trainer has made a stream that its run has
OWNER = "of"  # in a stream's meta: the epoch of the run that its sessions belong to


class ShardedDatabase(RedisDatabase):
    """A RedisDatabase without sessions of its own, and one more for each stream of them.

    Args:
        urls: of the servers, one for each stream; the first holds the rest of the run too.
        run, name, timeout, seal: as of RedisDatabase.
    """

    def __init__(
        self, urls: Sequence[str], run: str, *, name: str = "tinyverse", timeout: float = 5.0, seal: Seal | None = None
    ) -> None:
        options: dict[str, Any] = {"name": name, "timeout": timeout, "seal": seal, "streams": len(urls)}
        super().__init__(urls[0], run, **options)
        self._urls = list(urls)
        self._parts = [RedisDatabase(url, run, stream=str(index), **options) for index, url in enumerate(urls)]
        self._inserted = [0] * len(urls)  # into each stream, as last read
        self._epochs = [""] * len(urls)  # of each stream
        self._lost: set[int] = set()  # streams that did not answer; a thread tries each again
        self._first = 0  # the stream that is read first, the next time
        self._drift = 0  # how much the first server's count of sessions is short of what the streams say
        self._run_epoch = ""  # of the run that this process has created; "" where it only joined it
        self._kept: int | None = None  # the capacity, as reported here
        self._joined: set[int] = set()  # streams that are known to be this run's
        self._arrived: Sequence[bytes] | None = None  # a stream has them, and the first server did not hear of it
        self._wrong: RunConflict | None = None  # what a thread found
        self._closed = threading.Event()

    def __repr__(self) -> str:
        return f"ShardedDatabase(run={self.run!r}, streams={self.streams})"

    def create(self, meta: Mapping[str, str]) -> dict[str, str]:
        first = self._first_knows()
        self._each(lambda index: self._check(index, *first))
        created = super().create({**meta, PLACES: json.dumps(self._places)} if len({*self._urls}) > 1 else meta)
        self._run_epoch = created["epoch"]
        self._each(self._make)
        return created

    def clear(self, keep_weights: bool = False) -> None:
        self._each(lambda index: self._parts[index].clear(keep_weights))
        if not keep_weights:
            self._each(self._unmark)
        super().clear(keep_weights)
        self._inserted, self._drift = [0] * self.streams, 0
        self._joined.clear()

    def close(self) -> None:
        self._closed.set()
        for part in self._parts:
            part.close()
        super().close()

    # sessions

    def append(
        self, blobs: Sequence[bytes], *, worker: Worker | None = None, episodes: Iterable[Mapping[str, Any]] = (),
        elsewhere: int = 0, player: str = "",
    ) -> State:  # fmt: skip
        """As of Database, but for "all or nothing": sessions come first, in one stream, and then the rest."""
        if blobs and blobs is not self._arrived:  # not again, where only the first server was missing
            name = worker.id if worker else player
            index = zlib.crc32(name.encode(errors="replace")) % self.streams
            try:
                self._join(index)
                self._parts[index].append(blobs)
            except DatabaseLost:
                if worker:
                    with contextlib.suppress(DatabaseError):
                        super().append([], worker=worker)  # others see who waits
                raise
            self._arrived = blobs
        state = super().append([], worker=worker, episodes=episodes, elsewhere=len(blobs) + elsewhere)
        self._arrived = None
        return state

    def append_as(self, player: str, blobs: Sequence[bytes]) -> State:
        return self.append(blobs, player=player)

    def read(self, after: str, limit: int, wait: float = 0.0) -> tuple[list[tuple[str, bytes]], State]:
        marks, ends, pause = split(after, self.streams), time.monotonic() + wait, 0.0
        while True:
            if self._wrong:
                raise self._wrong
            state, entries = self.state(), list[tuple[str, bytes]]()
            ours = bool(self._run_epoch) and state.epoch == self._run_epoch
            for turn in range(self.streams):
                if len(entries) < limit:
                    index = (self._first + turn) % self.streams
                    entries += self._read_from(index, marks, limit - len(entries), 0.0 if entries else pause, ours)
            self._first = (self._first + 1) % self.streams  # a busy stream must not keep the others from being read
            inserted = sum(self._inserted)
            if len(entries) < limit:  # all were read to their ends
                self._drift = inserted - state.inserted
            pause = min(PAUSE, ends - time.monotonic()) / self.streams
            if entries or pause <= 0:
                return entries, dataclasses.replace(state, inserted=inserted)

    def _read_from(self, index: int, marks: list[str], limit: int, wait: float, ours: bool) -> list[tuple[str, bytes]]:
        """Reads one stream, moves its mark on, and gives sessions their positions among all streams."""
        if index in self._lost:
            self._closed.wait(wait)
            return []
        try:
            entries, state = self._parts[index].read(marks[index], limit, wait)
            if ours and state.epoch != self._epochs[index]:  # it came back empty
                self._make(index)
        except DatabaseLost as error:
            self._lose(index, error)
            return []
        self._inserted[index] = state.inserted
        found = []
        for mark, blob in entries:
            marks[index] = mark
            found.append((joined(marks, index), blob))
        return found

    def newest(self, limit: int) -> list[tuple[str, bytes]]:
        found: list[tuple[tuple[int, ...], str, bytes]] = []
        for index, part in enumerate(self._parts):
            with contextlib.suppress(DatabaseLost):
                for mark, blob in part.newest(limit):
                    marks = [mark if place == index else BEGINNING for place in range(self.streams)]
                    found.append((tuple(map(int, mark.split("-"))), joined(marks, index), blob))
        return [(position, blob) for _, position, blob in sorted(found)[-limit:]]  # by the clocks of their servers

    def size(self) -> dict[str, int]:
        """As of RedisDatabase, of the streams that answer."""
        sizes = []
        for part in self._parts:
            with contextlib.suppress(DatabaseLost):
                sizes.append(part.size())
        return {name: sum(size[name] for size in sizes) for name in ("sessions", "bytes")}

    # numbers

    def report(self, **numbers: Any) -> None:
        """As of Database, and mends the count of sessions by which players know how far they are ahead: a stream may
        have come back empty, or have a push twice."""
        super().report(**numbers)
        drift, self._drift = self._drift, 0
        if drift:
            super().append([], elsewhere=drift)
        if numbers.get("capacity", self._kept) != self._kept:
            self._kept = numbers["capacity"]
            self._each(lambda index: self._parts[index].report(capacity=self._kept))

    def beat(self, worker: Worker) -> State:
        if self._lost:
            places = ", ".join(str(index + 1) for index in sorted(self._lost))
            error = f"no answer from shard {places} of {self.streams}; reading on from the others"
            worker = dataclasses.replace(worker, error=error)
        return super().beat(worker)

    def make_room(self) -> None:
        """Drops the oldest quarter of the sessions on the first server."""
        for part in self._parts:
            if part._url == self._url:
                part.make_room()

    # streams

    def _each(self, work: Any) -> None:
        """Calls `work` with the index of each stream; one that does not answer is left for later."""
        for index in range(self.streams):
            if index not in self._lost:
                try:
                    work(index)
                except DatabaseLost as error:
                    self._lose(index, error)

    def _make(self, index: int) -> None:
        """Makes a stream this run's, as its trainer: what it holds of another incarnation goes."""
        part = self._parts[index]
        owner = part.meta().get(OWNER, self._run_epoch)
        if owner != self._run_epoch:
            part.clear()
        self._epochs[index] = part.create({OWNER: self._run_epoch})["epoch"]
        if self._kept is not None:
            part.report(capacity=self._kept)
        if self._is_elsewhere(index):
            self._mark(index)

    def _first_knows(self) -> tuple[bytes | None, bytes | None]:
        """(epoch, places) of the run."""
        with errors(self._url):
            epoch, places = self._client.hmget(self._keys.meta, "epoch", PLACES)
        return epoch, places

    def _check(self, index: int, epoch: bytes | None, places: bytes | None) -> None:
        """Whether a server may be this one of the run's, before a trainer makes a stream there.

        An empty one may, because it was lost and is back; unless it has another place than the run's own.

        Raises:
            RunConflict: it is none of the run's servers, or another one of them.
        """
        if not self._is_elsewhere(index):
            return
        part = self._parts[index]
        with errors(part._url):
            its_epoch, shard, its_places = part._client.hmget(self._keys.meta, "epoch", SHARD, PLACES)
            owner, own, mine = part.meta().get(OWNER, ""), json.loads(places or its_places or "[]"), self._places
            if its_epoch is not None:  # a run is there
                wrong = its_epoch != epoch
            elif shard is not None and int(shard) != index + 1:
                wrong = True
            else:  # a stream of the run is good at any place
                at = 0 if epoch is None else index
                wrong = owner.encode() != epoch and own[at : at + 1] not in ([], mine[at : at + 1])
        if wrong:
            raise misplaced(self.run, own, self._urls)

    def _mark(self, index: int) -> None:
        """Says on another server that the run's first one is elsewhere, to whoever takes it for that."""

        def write(pipe: Any) -> None:
            there = pipe.hmget(self._keys.meta, "epoch", SHARD)
            pipe.multi()
            if there == [None, None]:
                pipe.hset(self._keys.meta, mapping={SHARD: index + 1, PLACES: json.dumps(self._places)})

        self._parts[index]._change(write, self._keys.meta)

    def _unmark(self, index: int) -> None:
        def remove(pipe: Any) -> None:
            shard = pipe.hget(self._keys.meta, SHARD)
            pipe.multi()
            if shard is not None:
                pipe.unlink(self._keys.meta)

        if self._is_elsewhere(index):
            self._parts[index]._change(remove, self._keys.meta)

    @property
    def _places(self) -> list[str]:
        return [*map(place_of, self._urls)]

    def _is_elsewhere(self, index: int) -> bool:
        """Whether a stream lies on another server than the first, where this run's keys can be written. Not within a
        cluster, whose nodes may keep them in different places."""
        return self._urls[index] != self._urls[0] and "+cluster:" not in self._urls[index]

    def _join(self, index: int) -> None:
        """Waits until a stream is this run's, as a player.

        Raises:
            RunConflict: it is not, so no trainer would find the sessions in it.
        """
        ends = time.monotonic() + PATIENCE
        while index not in self._joined:
            if self._parts[index].meta().get(OWNER, "") == self.state().epoch:
                self._joined.add(index)
            elif time.monotonic() > ends:
                raise RunConflict(
                    f"shard {index + 1} of run {self.run} is not where this command looks for it. Name the servers' URLs "
                    "in the order in which its trainer names them."
                )
            else:
                time.sleep(RETRY / 10)

    def _lose(self, index: int, error: DatabaseLost) -> None:
        log.warning("shard %d of %d: %s Reading on from the others.", index + 1, self.streams, error)
        self._lost.add(index)
        threading.Thread(target=self._seek, args=(index,), name=f"shard-{index}", daemon=True).start()

    def _seek(self, index: int) -> None:
        """Tries a lost stream until it answers: here, so that who reads is not held up again."""
        while index in self._lost and not self._closed.wait(RETRY):
            try:
                if self._run_epoch:
                    self._check(index, *self._first_knows())
                    self._make(index)
                else:
                    self._parts[index].state()
                self._lost.discard(index)
            except RunConflict as error:
                self._wrong = error
                return
            except DatabaseError:
                pass


def open_database(
    url: str,
    run: str,
    *,
    database: str | None = None,
    shards: int | None = None,
    name: str = "tinyverse",
    timeout: float = 5.0,
) -> Database:
    """The database of a run: on the Redis server at `url`, or the user's own class called with (url, run).

    Args:
        url: of one server, or of several with commas between them, a stream of sessions on each.
        database: "module:Class" of a `Database` of the user's own.
        shards: streams on the one server; None: one for each URL.
        name, timeout: as of `RedisDatabase`.

    Raises:
        SettingsError: the run's name, the URL, `shards` or `database` cannot be used.
    """
    if not database:
        urls = several(url)
        if shards is not None and (shards < 1 or len(urls) not in (1, shards)):
            raise SettingsError(
                f"--shards {shards} with {counted(len(urls), 'server')}: give one URL and as many shards as you "
                "like, or a URL for each and no --shards."
            )
        urls = urls * (shards or 1) if len(urls) == 1 else urls
        if len(urls) == 1:
            return RedisDatabase(url, run, name=name, timeout=timeout, seal=seal_of(run))
        return ShardedDatabase(urls, run, name=name, timeout=timeout, seal=seal_of(run))
    if shards is not None:
        raise SettingsError(f"--shards {shards} is for Redis; --database {database} spreads sessions as it likes.")
    module, _, attribute = database.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)(url, run)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"--database {database} should be module:Class, called with (url, run): {error}") from error
    if not isinstance(made, Database):
        raise SettingsError(
            f"--database {database} made a {type(made).__name__}; it must inherit tinyverse.database.base.Database."
        )
    return made
