"""RedisDatabase on a real server: the contract, agreement with MemoryDatabase, and what only a server can do wrong."""

from __future__ import annotations

import inspect
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.helpers.chaos import Breakable
from tests.helpers.database_contract import HERE, ME, DatabaseContract, dead_pid, read_all
from tests.helpers.people import until
from tinyverse.core.errors import DatabaseError, DatabaseLost, LeaseLost, SettingsError
from tinyverse.database.base import BEGINNING, DAMAGED, Database, State, Worker
from tinyverse.database.connection import connect, open_database, ping
from tinyverse.database.memory import MemoryDatabase
from tinyverse.database.redis import RedisDatabase, list_runs
from tinyverse.database.schema import COMMANDS, Keys
from tinyverse.database.server import Server, private_server


@pytest.fixture
def database(redis_url: str) -> Iterator[RedisDatabase]:
    made = RedisDatabase(redis_url, f"test-{secrets.token_hex(4)}")
    yield made
    made.clear()
    made.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that a test may break."""
    with private_server(max_memory=32 << 20) as server:
        yield server


class TestRedisDatabase(DatabaseContract):
    @pytest.fixture
    def database(self, redis_url: str) -> Iterator[Database]:  # type: ignore[override]
        made = RedisDatabase(redis_url, f"test-{secrets.token_hex(4)}")
        yield made
        made.clear()
        made.close()


NUMBER = some.integers(0, 6)
STEPS = some.one_of(
    some.tuples(some.just("append"), some.lists(some.binary(max_size=3), max_size=4)),
    some.tuples(some.just("read"), NUMBER, NUMBER),
    some.tuples(some.just("acquire"), NUMBER),
    some.tuples(some.just("release"), NUMBER),
    some.tuples(some.just("publish"), NUMBER, NUMBER),
    some.tuples(some.just("weights"), NUMBER),
    some.tuples(some.just("capacity"), NUMBER),
    some.tuples(some.just("count"), NUMBER),
    some.tuples(some.just("create"), NUMBER),
    some.tuples(some.just("stop")),
    some.tuples(some.just("beat"), NUMBER),
    some.tuples(some.just("leave"), NUMBER),
    some.tuples(some.just("clear"), some.booleans()),
)


def apply(database: Database, session_ids: list[str], step: tuple[Any, ...]) -> Any:
    """One step on one database: what anyone can see of it, but for random run ids and session ids."""
    name, *arguments = step
    holder = f"{HERE}:{os.getpid()}:{arguments[0] % 2}" if name in ("acquire", "release", "publish") else ""
    if name == "append":
        database.append(arguments[0], episodes=[{"n": len(arguments[0])}])
    elif name == "read":
        entries, _ = database.read(session_ids[arguments[0] % len(session_ids)], arguments[1] + 1)
        session_ids += [entries[-1][0]] if entries else []
        return [blob for _, blob in entries]
    elif name == "acquire":
        return database.acquire_lease(holder)
    elif name == "release":
        database.release_lease(holder)
    elif name == "publish":
        try:
            database.put_weights(b"%d" % arguments[1], arguments[1], holder=holder, update=arguments[0])
        except LeaseLost as error:
            return str(error)
    elif name == "weights":
        return database.get_weights(arguments[0] - 1), database.get_weights(version=arguments[0])
    elif name == "capacity":
        database.report(capacity=arguments[0], sampled=arguments[0] / 3)
    elif name == "count":
        database.count(rejected=arguments[0])
    elif name == "create":
        return {**database.create({"by": str(arguments[0])}), "run_id": ""}
    elif name == "stop":
        database.ask_stop()
    elif name == "beat":
        database.beat(Worker(str(arguments[0]), "play"))
    elif name == "leave":
        database.leave(str(arguments[0]))
    else:
        database.clear(keep_weights=arguments[0])
        if not arguments[0]:
            session_ids[:] = [BEGINNING]  # a cursor is good for one incarnation
    return None


def visible(database: Database) -> Any:
    state = database.state()
    return (
        {**vars(state), "run_id": bool(state.run_id)}, database.counters(), database.episodes(), database.size()["sessions"],
        sorted(worker.id for worker in database.workers()), read_all(database), database.meta().get("by"),
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(steps=some.lists(STEPS, max_size=25))
def test_both_databases_do_the_same(redis_url: str, steps: list[tuple[Any, ...]]) -> None:
    memory, server = MemoryDatabase(), RedisDatabase(redis_url, f"same-{secrets.token_hex(4)}")
    ours, theirs = [BEGINNING], [BEGINNING]
    try:
        for step in steps:
            assert apply(memory, ours, step) == apply(server, theirs, step), step
            assert visible(memory) == visible(server), step
    finally:
        server.clear()
        server.close()


# the server's rights


def test_every_command_sent_is_granted_and_every_granted_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the whole contract on a server of its own, then asks that server what it was sent."""
    contract = DatabaseContract()
    with private_server() as server, connect(server.admin_url) as admin:
        before = {"info", *commands(admin)} - {
            "client|setname",
            "client",
        }  # a Valkey that starts counts some of its own
        for name, test in inspect.getmembers(contract, inspect.ismethod):
            if not name.startswith("test_"):
                continue
            database = RedisDatabase(server.url, name)
            with monkeypatch.context() as patched:
                arguments = {
                    "database": database,
                    "monkeypatch": patched,
                    "blob": b"blob",
                    "version": 5,
                    "name": "stop",
                }
                test(**{key: arguments[key] for key in inspect.signature(test).parameters})
            database.close()
        ping(server.url)
        assert list_runs(server.url) != []
        sent = commands(admin) - before
    granted = {command if command in sent else command.partition("|")[0] for command in COMMANDS}  # 6.2 counts "client"
    assert sent - {"auth"} == granted


def commands(admin: Any) -> set[str]:
    return {name.removeprefix("cmdstat_") for name, facts in admin.info("commandstats").items() if facts["calls"]}


FORBIDDEN = [
    ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/"), ("EVAL", "return 1", 0), ("SCRIPT", "FLUSH"), ("KEYS", "*"), ("SCAN", 0),
    ("FLUSHALL",), ("FLUSHDB",), ("SHUTDOWN",), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", 1), ("ACL", "LIST"), ("MONITOR",),
    ("MODULE", "LIST"), ("REPLICAOF", "NO", "ONE"), ("DEBUG", "SLEEP", 0), ("SAVE",), ("INFO",), ("GET", "other"), ("SET", "other", "1"),
    ("XADD", "other", "*", "a", "b"), ("DEL", "tv:x"), ("RESTORE", "tv:x", 0, "x"), ("PFADD", "tv:x", "1"), ("PUBLISH", "tv:x", "1"),
]  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN, ids=lambda command: " ".join(map(str, command[:2])))
def test_everything_else_is_denied(redis_url: str, command: tuple[Any, ...]) -> None:
    with connect(redis_url) as client, pytest.raises(redis.ResponseError, match="permission|not allowed"):
        client.execute_command(*command)


def test_nobody_is_anonymous(redis_url: str) -> None:
    anonymous = RedisDatabase("unix://" + redis_url.partition("@")[2], "x")
    with pytest.raises(DatabaseError, match="refuses user 'default'.*TINYVERSE_REDIS_URL or --password") as caught:
        anonymous.state()
    assert not isinstance(caught.value, DatabaseLost)


def test_a_wrong_password_is_named_but_not_told(redis_url: str) -> None:
    wrong = RedisDatabase("unix://tv:sesame@" + redis_url.partition("@")[2], "x")
    with pytest.raises(DatabaseError, match="refuses user 'tv'") as caught:
        wrong.append([b"x"])
    assert "sesame" not in str(caught.value) and "sesame" not in repr(wrong)


def test_a_wrong_type_is_a_refusal(redis_server: Server, database: RedisDatabase) -> None:
    with connect(redis_server.admin_url) as admin:
        admin.set(Keys(database.run).stat, "not a hash")
    with pytest.raises(DatabaseError, match="WRONGTYPE"):
        database.state()
    with connect(redis_server.admin_url) as admin:
        admin.delete(Keys(database.run).stat)


# keys and names


def test_the_keys() -> None:
    keys = Keys("pong-1.a_B")
    assert keys.sessions == "tv:{pong-1.a_B}:sessions" and keys.weights(7) == "tv:{pong-1.a_B}:w:7"
    assert {name: key.removeprefix("tv:{pong-1.a_B}:") for name, key in vars(keys).items() if name[0] != "_"} == {
        "meta": "meta", "sessions": "sessions", "current": "w:cur", "heartbeats": "hb", "lease": "lease", "stat": "stat",
        "tally": "tally", "episodes": "episodes", "metrics": "metrics", "errors": "errors",
    }  # fmt: skip


@pytest.mark.parametrize("run", ["", "a b", "a}b", "a:b", "ä", "a\n", "*"])
def test_names_that_runs_may_not_have(run: str) -> None:
    with pytest.raises(SettingsError, match="--name"):
        RedisDatabase("redis://localhost", run)


def test_a_cleared_run_leaves_no_key(redis_server: Server, database: RedisDatabase) -> None:
    DatabaseContract().fill(database)
    with connect(redis_server.admin_url) as admin:
        assert len(admin.keys(f"tv:{{{database.run}}}:*")) == 11
        database.clear()
        assert admin.keys(f"*{database.run}*") == []


def test_runs_are_listed(redis_url: str, database: RedisDatabase) -> None:
    database.beat(Worker("w", "play"))
    assert database.run not in list_runs(redis_url)
    database.create({})
    assert database.run in list_runs(redis_url)
    database.clear(keep_weights=True)
    assert database.run in list_runs(redis_url)
    database.clear()
    assert database.run not in list_runs(redis_url)


def test_runs_do_not_meet(redis_url: str, database: RedisDatabase) -> None:
    other = open_database(redis_url, database.run + "-2")
    other.append([b"other"])
    assert database.state() == State() and read_all(database) == []
    other.clear()
    other.close()


class Custom(MemoryDatabase):
    def __init__(self, url: str, run: str) -> None:
        super().__init__()
        self.called_with = (url, run)


def test_a_database_of_the_users_own() -> None:
    made = open_database("somewhere", "run", database=f"{__name__}:Custom")
    assert isinstance(made, Custom) and made.called_with == ("somewhere", "run")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere_at_all:X", "No module"),
        ("json:X", "attribute"),
        ("json", "module:Class"),
        ("builtins:max", "made a str"),
    ],
)
def test_a_database_that_cannot_be_used(name: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        open_database("somewhere", "run", database=name)


# leases and weights


def test_the_lease_of_a_dead_process_of_this_host_is_free(database: RedisDatabase) -> None:
    dead = f"{HERE}:{dead_pid()}:x"
    assert database.acquire_lease(dead)
    assert database.acquire_lease(ME)
    with pytest.raises(LeaseLost):
        database.put_weights(b"", 0, holder=dead)


def test_the_lease_of_another_host_is_not(database: RedisDatabase) -> None:
    assert database.acquire_lease(f"elsewhere:{dead_pid()}:x")
    assert not database.acquire_lease(ME)


def test_a_lease_lasts_ten_seconds(redis_server: Server, database: RedisDatabase) -> None:
    database.acquire_lease(ME)
    with connect(redis_server.admin_url) as admin:
        assert 9000 < int(admin.pttl(Keys(database.run).lease)) <= 10000  # type: ignore[arg-type]


def test_a_publisher_that_loses_its_lease_on_the_way_is_fenced(
    redis_server: Server, database: RedisDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease changes hands after it was looked at and before EXEC."""
    import tinyverse.database.base as module

    database.acquire_lease(ME)
    check = module.check_fence

    def slow(*arguments: Any) -> None:
        check(*arguments)
        with connect(redis_server.admin_url) as admin:
            admin.set(Keys(database.run).lease, "elsewhere:1:x")

    monkeypatch.setattr(module, "check_fence", slow)
    with pytest.raises(LeaseLost, match="elsewhere"):
        database.put_weights(b"stale", 0, holder=ME)
    assert database.get_weights() is None and database.state().version == -1


def test_damaged_weights_are_refused(redis_server: Server, database: RedisDatabase) -> None:
    database.acquire_lease(ME)
    database.put_weights(b"right", 3, holder=ME)
    with connect(redis_server.admin_url) as admin:
        admin.set(Keys(database.run).weights(3), "wrong")
    with pytest.raises(DatabaseError, match="version 3 .* damaged"):
        database.get_weights()


# time and people


def test_staleness_goes_by_the_servers_clock(database: RedisDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    database.beat(Worker("now", "play"))
    assert database._clock is not None
    database._clock -= 20  # so that the next heartbeat says it is 20 s old
    database.beat(Worker("before", "play"))
    assert [worker.id for worker in database.workers()] == ["now"]


def test_heartbeats_of_other_releases(redis_server: Server, database: RedisDatabase) -> None:
    database.beat(Worker("good", "play"))
    with connect(redis_server.admin_url) as admin:
        seconds = admin.time()[0]  # type: ignore[index]
        new = json.dumps({"id": "new", "role": "play", "mood": 1, "at": seconds})
        beats = {"new": new, "bad": "{", "worse": "[]", "none": "{}"}
        admin.hset(Keys(database.run).heartbeats, mapping=beats)
    assert sorted(worker.id for worker in database.workers()) == ["good", "new"]


def test_numbers_of_numpy(database: RedisDatabase) -> None:
    import numpy as np

    database.append(
        [], episodes=[{"return": np.float32(0.5), "length": np.int64(3)}], worker=Worker("w", "play", steps=np.int64(4))
    )
    database.report(step=np.int64(5), sampled=np.float32(0.25), capacity=np.int32(9))
    assert database.episodes() == [{"return": 0.5, "length": 3}] and database.workers()[0].steps == 4
    assert database.state() == State(step=5, sampled=0.25, capacity=9)


# trouble


def test_a_push_is_one_round_trip(redis_server: Server, database: RedisDatabase) -> None:
    database.append([b"x"])
    with connect(redis_server.admin_url) as admin:
        before = admin.info("stats")["total_reads_processed"]
        database.append([b"x" * 100] * 8, worker=Worker("w", "play"), episodes=[{"return": 1.0}])
        assert admin.info("stats")["total_reads_processed"] - before == 2  # this INFO, and the push


@pytest.mark.faults
def test_a_killed_server_is_lost_at_once(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x")
    database.append([b"x"])
    os.kill(own_server.pid, signal.SIGKILL)
    start = time.monotonic()
    for call in (
        lambda: database.append([b"x"]),
        database.state,
        lambda: database.acquire_lease(ME),
        database.get_weights,
    ):
        with pytest.raises(DatabaseLost, match="does not answer") as caught:
            call()
        assert own_server.url not in str(caught.value)
    assert time.monotonic() - start < 2


@pytest.mark.faults
def test_a_reader_that_waits_learns_of_the_death(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x")
    database.state()
    signal.signal(signal.SIGALRM, lambda *_: os.kill(own_server.pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.monotonic()
    with pytest.raises(DatabaseLost):
        database.read(BEGINNING, 1, wait=20)
    assert time.monotonic() - start < 5


@pytest.mark.faults
def test_a_frozen_server_is_lost_and_nothing_is_sent_twice(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x", timeout=1.1)
    database.append([b"x"])
    os.kill(own_server.pid, signal.SIGSTOP)
    with pytest.raises(DatabaseLost):
        database.append([b"y"])
    os.kill(own_server.pid, signal.SIGCONT)
    state = database.state()
    assert read_all(database) == [b"x", b"y"][: state.inserted] and state.inserted <= 2


def test_a_reader_that_waits_while_its_server_becomes_a_replica(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends the wait by an error of its own; the server has not refused anything, it is lost for a while."""
    monkeypatch.setattr("tinyverse.database.redis.BLOCK", 4.0)
    database = RedisDatabase(own_server.url, "x")
    with connect(own_server.admin_url) as admin, ThreadPoolExecutor(1) as beside:
        reading = beside.submit(database.read, "0-0", 1, wait=4.0)
        until(lambda: admin.info("clients")["blocked_clients"])  # type: ignore[index]
        admin.replicaof("127.0.0.1", 1)
        with pytest.raises(DatabaseLost, match="is not ready: UNBLOCKED"):
            reading.result(10)


def test_an_emptied_server_is_a_fresh_run(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x")
    DatabaseContract().fill(database)
    with connect(own_server.admin_url) as admin:
        admin.flushall()
    DatabaseContract().test_a_run_that_was_never_created(database)
    with pytest.raises(LeaseLost, match="nobody"):
        database.put_weights(b"", 9, holder=ME)
    assert database.append([b"x"]) == State(inserted=1)
    assert database.create({"spec": "new"})["spec"] == "new" and database.acquire_lease(ME)


def test_a_full_server_keeps_fewer_sessions_and_goes_on(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x")
    for number in range(100):
        database.append([b"%3d" % number + b"." * 500_000])
    assert 10 < database.size()["sessions"] < 70
    assert database.state().inserted == 100 and read_all(database)[-1][:3] == b" 99"
    for version in range(4):
        assert database.acquire_lease(ME)  # each time: a busy machine takes longer than it lasts
        database.put_weights(bytes(2_000_000), version, holder=ME)
    assert database.state().version == 3


def test_a_server_full_of_others_says_so(own_server: Server) -> None:
    database = RedisDatabase(own_server.url, "x")
    with connect(own_server.admin_url) as admin:
        for number in range(40):
            try:
                admin.set(f"other{number}", bytes(1 << 20))
            except redis.OutOfMemoryError:
                break
    with pytest.raises(DatabaseError, match="full.*--buffer-size"):
        database.append([bytes(1 << 20)])
    assert database.state().inserted == 0


def test_what_is_too_large_is_not_sent(database: RedisDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyverse.database.redis.LARGEST", 3 << 20)
    with pytest.raises(DatabaseError, match="take 4 MiB; at most 3"):
        database.append([bytes(2 << 20)] * 2)
    with pytest.raises(DatabaseError, match="version 1 take 4 MiB"):
        database.put_weights(bytes(4 << 20), 1, holder=ME)


def test_a_timeout_below_the_wait_is_refused() -> None:
    with pytest.raises(SettingsError, match="timeout"):
        RedisDatabase("redis://localhost", "x", timeout=1.0)


def test_a_flipped_bit_in_a_session_is_noticed_and_sessions_of_the_first_versions_are_read(
    redis_server: Server, database: RedisDatabase
) -> None:
    blob, key = bytes(range(256)), Keys(database.run).sessions
    database.append([blob])
    with connect(redis_server.admin_url) as admin:
        (_, fields) = admin.xrange(key)[0]
        for bit in range(8 * len(blob)):
            flipped = bytearray(blob)
            flipped[bit // 8] ^= 1 << bit % 8
            admin.xadd(key, {**fields, b"s": bytes(flipped)})
        admin.xadd(key, {b"s": blob})
    assert [found for _, found in database.read("0-0", 10_000)[0]] == [blob, *[DAMAGED] * (8 * len(blob)), blob]


def test_a_server_that_says_not_now_is_waited_for_and_nothing_of_a_session_is_quoted() -> None:
    with Breakable() as server:
        database = RedisDatabase(server.url, "busy")
        database.append([b"before"])
        with server.unsaved(), pytest.raises(DatabaseLost, match="is not ready: MISCONF") as caught:
            database.append([b"secret"])
        assert "secret" not in str(caught.value)
        with connect(server.admin_url) as admin:
            admin.config_set("min-replicas-to-write", 1)
            with pytest.raises(DatabaseLost, match="is not ready: NOREPLICAS"):
                database.append([b"secret"])
            admin.config_set("min-replicas-to-write", 0)
        assert database.append([b"after"]).inserted == 2
