"""What every Database promises, as one class: subclasses give a `database` fixture with a fresh run in it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tinyverse.core.errors import LeaseLost, RunConflict
from tinyverse.core.system import this_machine
from tinyverse.database.base import BEGINNING, ERRORS_KEPT, LOG_KEPT, WEIGHTS_KEPT, Database, State, Worker

HERE = this_machine()
ME = f"{HERE}:{os.getpid()}:me"
OTHER = f"{HERE}:{os.getpid()}:other"  # alive, as its process is ours


def read_all(database: Database, after: str = BEGINNING, limit: int = 7) -> list[bytes]:
    blobs: list[bytes] = []
    while True:
        entries, _ = database.read(after, limit)
        blobs += [blob for _, blob in entries]
        if len(entries) < limit:
            return blobs
        after = entries[-1][0]


def together(*functions: Callable[[], object]) -> None:
    """Runs functions in threads, to the end, and raises what they raised."""
    raised: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    if raised:
        raise raised[0]


def patch(monkeypatch: pytest.MonkeyPatch, database: Database, name: str, number: float) -> None:
    """Sets a constant in the module whose class of this database, or of the one that it wraps, uses it."""
    kind = type(getattr(database, "_database", database))
    modules = (sys.modules[kind.__module__] for kind in kind.__mro__)
    monkeypatch.setattr(next(module for module in modules if hasattr(module, name)), name, number)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=20)
    return process.pid


class DatabaseContract:
    """Subclasses override the fixture `database`."""

    @pytest.fixture
    def database(self) -> Database:
        raise NotImplementedError

    # the run

    def test_a_run_that_was_never_created(self, database: Database) -> None:
        assert database.state() == State()
        assert database.meta() == {} and database.counters() == {}
        assert database.read(BEGINNING, 10) == ([], State())
        assert database.get_weights() is None and database.get_weights(version=0) is None
        assert database.workers() == database.episodes() == database.metrics() == database.errors() == []
        assert database.size() == {"sessions": 0, "bytes": 0}

    def test_the_first_creator_wins(self, database: Database) -> None:
        first = database.create({"spec": "a", "settings": "ü"})
        assert database.create({"spec": "b"}) == first == database.meta()
        assert {**first, "run_id": ""} == {"spec": "a", "settings": "ü", "run_id": ""}
        assert len(first["run_id"]) >= 16 and database.state().run_id == first["run_id"]

    def test_creators_at_once_agree(self, database: Database) -> None:
        metas: list[dict[str, str]] = []
        together(*[lambda name=name: metas.append(database.create({"by": name})) for name in "abcd"])
        assert metas == [database.meta()] * 4

    def test_stop_grows(self, database: Database) -> None:
        database.ask_stop()
        database.ask_stop()
        assert database.state().stop == 2

    def test_clear_leaves_nothing(self, database: Database) -> None:
        run_id = self.fill(database)
        database.clear()
        self.test_a_run_that_was_never_created(database)
        assert database.create({})["run_id"] != run_id
        assert database.acquire_lease(OTHER)

    def test_clear_can_keep_the_weights(self, database: Database) -> None:
        run_id = self.fill(database)
        meta = database.meta()
        database.clear(keep_weights=True)
        assert database.state() == State(run_id=run_id, version=4, update=5, step=6, capacity=3, stop=1)
        assert database.get_weights() == (4, b"four") and database.meta() == meta
        assert read_all(database) == [] and database.counters() == {}
        assert database.workers() == database.episodes() == database.metrics() == database.errors() == []
        database.put_weights(b"five", 5, holder=ME)

    def fill(self, database: Database) -> str:
        run_id = database.create({"spec": "a"})["run_id"]
        worker = Worker("w", "play")
        assert database.acquire_lease(ME)
        database.report(capacity=3, sampled=2.5, reuse=4.0, max_ahead=9.0, cursor="1-0")
        database.append([b"1", b"2"], worker=worker, episodes=[{"return": 1.0}])
        database.put_weights(b"four", 4, holder=ME, update=5, step=6)
        database.count(rejected=1)
        database.log_metrics({"loss": 1.0})
        database.log_error({"error": "no"})
        database.ask_stop()
        return run_id

    # sessions

    def test_sessions_come_in_order_and_once(self, database: Database) -> None:
        blobs = [b"%d" % number for number in range(25)]
        assert database.append(blobs[:1]).inserted == 1
        assert database.append(blobs[1:]).inserted == 25
        assert read_all(database) == blobs
        after = database.read(BEGINNING, 10)[0][-1][0]
        assert read_all(database, after) == blobs[10:]
        last = database.read(BEGINNING, 25)[0][-1][0]
        assert database.read(last, 10)[0] == []

    @pytest.mark.parametrize("blob", [b"", b"\0", b"\r\n$-1\r\n", bytes(range(256)), os.urandom(1 << 20)], ids=len)
    def test_bytes_are_bytes(self, database: Database, blob: bytes) -> None:
        database.append([blob, bytearray(blob)])  # type: ignore[list-item]
        assert read_all(database) == [blob, blob]
        database.acquire_lease(ME)
        database.put_weights(blob, 0, holder=ME)
        assert database.get_weights() == (0, blob)

    def test_the_newest_are_kept(self, database: Database) -> None:
        database.report(capacity=3)
        state = database.append([b"%d" % number for number in range(5)])
        assert read_all(database) == [b"2", b"3", b"4"]
        assert state.inserted == 5 and database.size() == {"sessions": 3, "bytes": 3}

    def test_a_lower_capacity_holds_at_once(self, database: Database) -> None:
        database.append([b"a", b"b", b"c"])
        database.report(capacity=2)
        assert read_all(database) == [b"b", b"c"]

    def test_a_trimmed_position_reads_from_the_oldest(self, database: Database) -> None:
        database.append([b"a"])
        session_id = database.read(BEGINNING, 1)[0][0][0]
        database.report(capacity=2)
        database.append([b"b", b"c", b"d"])
        assert read_all(database, session_id) == [b"c", b"d"]

    def test_positions_stay_valid_within_an_epoch(self, database: Database) -> None:
        database.append([b"a"])
        session_id = database.read(BEGINNING, 1)[0][0][0]
        database.clear(keep_weights=True)
        database.append([b"b"])
        assert read_all(database, session_id) == [b"b"]

    def test_writers_at_once(self, database: Database) -> None:
        """Every session once, each writer's in its order; where the end is reached, all that was inserted was read."""
        seen: list[bytes] = []

        def write(name: int) -> None:
            for number in range(0, 60, 3):
                database.append([b"%d %d" % (name, number + more) for more in range(3)])

        def read() -> None:
            after, ends = BEGINNING, time.monotonic() + 50
            while len(seen) < 180 and time.monotonic() < ends:
                entries, state = database.read(after, 16, wait=1.0)
                seen.extend(blob for _, blob in entries)
                after = entries[-1][0] if entries else after
                assert len(seen) == state.inserted if len(entries) < 16 else len(seen) <= state.inserted

        together(read, *[lambda name=name: write(name) for name in range(3)])
        for name in range(3):
            assert [blob for blob in seen if blob.startswith(b"%d " % name)] == [
                b"%d %d" % (name, n) for n in range(60)
            ]

    def test_a_waiting_read_wakes(self, database: Database) -> None:
        waited: list[float] = []

        def read() -> None:
            start = time.monotonic()
            entries, state = database.read(BEGINNING, 10, wait=15)
            waited.append(time.monotonic() - start)
            assert [blob for _, blob in entries] == [b"a", b"b"] and state.inserted == 2

        def write() -> None:
            time.sleep(0.2)
            database.append([b"a", b"b"])

        together(read, write)
        assert 0.1 < waited[0] < 5

    def test_a_waiting_read_gives_up(self, database: Database) -> None:
        start = time.monotonic()
        assert database.read(BEGINNING, 10, wait=0.2)[0] == []
        assert 0.15 < time.monotonic() - start < 3

    # weights

    def test_weights(self, database: Database) -> None:
        assert database.acquire_lease(ME)
        database.put_weights(b"zero", 0, holder=ME, update=1, step=2)
        assert database.get_weights() == (0, b"zero") and database.get_weights(newer_than=0) is None
        state = database.state()
        assert (state.version, state.update, state.step) == (0, 1, 2)
        database.put_weights(b"seven", 7, holder=ME)
        assert database.get_weights(newer_than=0) == (7, b"seven") == database.get_weights(newer_than=6)
        assert database.get_weights(version=0) == (0, b"zero")

    def test_three_versions_are_kept_whatever_their_numbers(self, database: Database) -> None:
        database.acquire_lease(ME)
        for version in (2, 3, 10, 11, 40):
            database.put_weights(b"%d" % version, version, holder=ME)
        kept = [version for version in range(50) if database.get_weights(version=version)]
        assert kept == [10, 11, 40] and len(kept) == WEIGHTS_KEPT

    def test_weights_and_version_never_disagree(self, database: Database) -> None:
        database.acquire_lease(ME)
        done = threading.Event()

        def publish() -> None:
            for version in range(150):
                database.put_weights(b"%d" % version * 2000, version, holder=ME, update=2 * version, step=3 * version)
            done.set()

        def fetch() -> None:
            newest, ends = -1, time.monotonic() + 50
            while newest < 149 and time.monotonic() < ends:
                if found := database.get_weights(newest):
                    newest, before = found[0], newest
                    assert newest > before and found[1] == b"%d" % newest * 2000
                state = database.state()
                assert state.version < 0 or (state.update, state.step) == (2 * state.version, 3 * state.version)
            assert newest == 149

        together(publish, fetch, fetch)

    def test_only_the_lease_holder_publishes(self, database: Database) -> None:
        with pytest.raises(LeaseLost, match="held by nobody"):
            database.put_weights(b"", 0, holder=ME)
        assert database.acquire_lease(ME)
        with pytest.raises(LeaseLost, match=f"held by {ME}"):
            database.put_weights(b"", 0, holder=OTHER)
        assert database.get_weights() is None

    def test_weights_never_come_without_their_run(self, database: Database) -> None:
        """Not after the run was removed, nor into one that was made anew, whoever has the lease."""
        before = database.create({"spec": "a"})["run_id"]
        database.acquire_lease(ME)
        database.put_weights(b"right", 0, holder=ME, run_id=before)
        assert database.get_weights() == (0, b"right")
        database.clear()
        database.acquire_lease(ME)
        with pytest.raises(RunConflict, match="version 1 .*gone"):
            database.put_weights(b"late", 1, holder=ME, run_id=before)
        with pytest.raises(RunConflict, match="gone"):
            database.put_weights(b"late", 1, holder=ME, run_id="")
        after = database.create({"spec": "b"})["run_id"]
        with pytest.raises(RunConflict, match="another"):
            database.put_weights(b"late", 1, holder=ME, run_id=before)
        assert database.get_weights() is None and database.state().version == -1
        database.put_weights(b"new", 1, holder=ME, run_id=after)
        assert database.get_weights() == (1, b"new")

    @pytest.mark.parametrize("version", [4, 5])
    def test_versions_only_grow(self, database: Database, version: int) -> None:
        database.acquire_lease(ME)
        database.put_weights(b"right", 5, holder=ME)
        with pytest.raises(LeaseLost, match="version 5 is out already"):
            database.put_weights(b"wrong", version, holder=ME)
        assert database.get_weights() == (5, b"right")

    def test_one_holds_the_lease(self, database: Database) -> None:
        assert database.acquire_lease(ME) and database.acquire_lease(ME)
        assert not database.acquire_lease(OTHER)
        database.release_lease(OTHER)
        assert not database.acquire_lease(OTHER)
        database.release_lease(ME)
        assert database.acquire_lease(OTHER)

    def test_one_of_many_takes_the_lease(self, database: Database) -> None:
        took: list[bool] = []
        together(*[lambda name=name: took.append(database.acquire_lease(f"{ME}{name}")) for name in range(5)])
        assert sorted(took) == [False] * 4 + [True]

    def test_an_expired_lease_is_free_and_its_holder_fenced(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        patch(monkeypatch, database, "LEASE_SECONDS", 0.05)
        assert database.acquire_lease(ME)
        ends = time.monotonic() + 50
        while not database.acquire_lease(OTHER):
            assert time.monotonic() < ends
        with pytest.raises(LeaseLost):
            database.put_weights(b"", 0, holder=ME)

    # people and numbers

    def test_workers(self, database: Database) -> None:
        worker = Worker(
            "p-1", "play", "höst", 12, num_envs=3, steps=4, steps_per_second=5.5, version=6, waits_for="sessions"
        )
        other = Worker("t-1", "train", error="it broke")
        assert database.beat(worker) == State()
        database.append([], worker=other)
        database.append([], worker=Worker("p-1", "play", "höst", 12, num_envs=3, steps=9))
        seen = {found.id: found for found in database.workers()}
        assert seen.keys() == {"p-1", "t-1"} and seen["p-1"].steps == 9 and seen["t-1"].error == "it broke"
        assert all(0 <= found.seen < 5 for found in seen.values())
        database.leave("t-1")
        database.leave("nobody")
        assert [found.id for found in database.workers()] == ["p-1"]

    def test_a_heartbeat_carries_everything(self, database: Database) -> None:
        worker = Worker(
            "p-1", "play", "höst", 12, 3, 4, 5.5, 6, 0.5, 7, {"act": 0.5}, 8, 9, 10, 9.5, "sessions", 1.5, "none"
        )  # fmt: skip
        database.beat(worker)
        found = database.workers()[0]
        found.seen = 0.0
        assert found == worker

    def test_who_falls_silent_is_gone_and_may_come_back(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.beat(Worker("a", "play"))
        with monkeypatch.context() as patched:
            patch(patched, database, "STALE_AFTER", 0.0)
            assert database.workers() == []
        database.beat(Worker("a", "play"))
        assert [worker.id for worker in database.workers()] == ["a"]

    def test_report(self, database: Database) -> None:
        numbers: dict[str, Any] = {
            "update": 3, "step": 1 << 40, "sampled": 0.1, "reuse": 2.5, "max_ahead": 1e9, "capacity": 7, "cursor": "5-3",
        }  # fmt: skip
        database.report(**numbers)
        assert database.state() == State(**numbers)
        database.report(max_ahead=None)
        assert database.state() == State(**{**numbers, "max_ahead": None})
        database.report()

    @pytest.mark.parametrize("name", ["inserted", "version", "run_id", "stop", "rejected"])
    def test_report_sets_nothing_else(self, database: Database, name: str) -> None:
        with pytest.raises(TypeError, match=name):
            database.report(**{name: 1})
        assert database.state() == State()

    def test_every_round_trip_brings_the_state(self, database: Database) -> None:
        database.report(reuse=3.0)
        state = database.append([b"x"])
        assert state == database.state() == database.beat(Worker("w", "play")) == database.read(BEGINNING, 5)[1]
        assert state.inserted == 1 and state.deficit == 3.0

    def test_counters_add_up(self, database: Database) -> None:
        together(*[lambda: database.count(rejected=2, stop=1) for _ in range(4)])
        assert database.counters() == {"rejected": 8, "stop": 4}
        assert database.state() == State()
        database.count()

    def test_episodes(self, database: Database) -> None:
        rows = [{"return": number / 3, "length": number, "player": "ü"} for number in range(5)]
        database.append([], episodes=rows[:2])
        database.append([b"s"], episodes=iter(rows[2:]))
        assert database.episodes() == rows
        assert database.episodes(limit=2) == rows[-2:] and database.episodes(limit=0) == []

    def test_metrics(self, database: Database) -> None:
        for number in range(3):
            database.log_metrics({"loss/policy": number * 0.1, "update": number})
        assert database.metrics() == [{"loss/policy": number * 0.1, "update": number} for number in range(3)]
        assert [row["update"] for row in database.metrics(limit=2)] == [1, 2] and database.metrics(limit=0) == []

    def test_the_newest_sessions(self, database: Database) -> None:
        assert database.newest(3) == []
        database.append([bytes([number]) for number in range(150)])
        entries = database.read("0-0", 1000)[0]
        assert database.newest(3) == entries[-3:] and database.newest(1000) == entries

    def test_errors(self, database: Database) -> None:
        for number in range(ERRORS_KEPT + 5):
            database.log_error({"error": f"ü {number}", "traceback": "a\nb"})
        assert [row["error"] for row in database.errors(2)] == [f"ü {ERRORS_KEPT + 3}", f"ü {ERRORS_KEPT + 4}"]
        assert len(database.errors(1000)) == ERRORS_KEPT and database.errors(0) == []

    def test_the_logs_are_bounded(self, database: Database) -> None:
        database.append([], episodes=[{"n": number} for number in range(LOG_KEPT + 3)])
        kept = database.episodes(limit=2 * LOG_KEPT)
        assert len(kept) == LOG_KEPT and kept[0] == {"n": 3}

    def test_size(self, database: Database) -> None:
        database.append([b"12345"] * 4)
        assert database.size() == {"sessions": 4, "bytes": 20}
