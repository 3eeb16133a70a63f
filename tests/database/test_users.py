"""Access: what each role may do, asked of every server there is here."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.database.test_redis import FORBIDDEN
from tests.helpers.database_contract import ME, DatabaseContract, read_all
from tests.helpers.people import a_spec
from tests.helpers.servers import name_of, servers_here
from tinyverse.core.errors import DatabaseError, DatabaseLost, ServerError
from tinyverse.core.run_config import run_config
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.database.base import Worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase, list_runs
from tinyverse.database.schema import Keys
from tinyverse.database.server import private_server
from tinyverse.database.users import OLDEST, ROLES, make_users
from tinyverse.monitoring.status import gather

BINARIES = [path for path in servers_here() if (server_config.version_of(path) or ()) >= OLDEST]
RUN = "pong"


class Place:
    """A server with the roles of one run, and a second run beside it."""

    def __init__(self, url: str) -> None:
        self.admin = url
        self.urls = make_users(RUN, url)
        self.databases = {role: RedisDatabase(self.urls[role], RUN) for role in ROLES}
        self.trainer, self.player, self.viewer = (self.databases[role] for role in ("trainer", "player", "viewer"))

    def fresh(self) -> Place:
        with connect(self.admin) as admin:
            admin.flushall()
        for run in (RUN, "other"):
            database = RedisDatabase(self.admin, run)
            database.create({"spec": "s"})
            database.acquire_lease(ME)
            database.put_weights(b"weights", 3, holder=ME)
            database.append([b"session"])
            database.close()
        return self


@pytest.fixture(scope="module", params=BINARIES, ids=name_of)
def server(request: Any) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patched:
        version = server_config.version_of(request.param)
        patched.setattr(server_config, "find_binary", lambda: (request.param, version))
        with private_server() as started:
            yield Place(started.admin_url)


@pytest.fixture
def place(server: Place) -> Place:
    return server.fresh()


def command(database: RedisDatabase, url: str, *, words: tuple[Any, ...]) -> None:
    with connect(url) as client:
        client.execute_command(*words)


@contextlib.contextmanager
def denied() -> Iterator[None]:
    with pytest.raises(DatabaseError, match="does not permit"):
        yield


def table() -> list[tuple[str, str, bool]]:
    """Each cell of the table in docs/security.md: who, what, whether it is allowed."""
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    lines = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    who = [cell.strip() for cell in lines[0][1:]]
    return [
        (role, what.strip(), cell.strip() == "yes")
        for what, *cells in lines[2:]
        for role, cell in zip(who, cells, strict=True)
    ]


Act = Callable[[RedisDatabase, str], Any]
ACTS: dict[str, list[Act]] = {
    "append sessions, heartbeats, finished episodes, errors": [
        lambda db, url: db.append([b"x"], worker=Worker("w", "play"), episodes=[{"return": 1.0, "length": 1}]),
        lambda db, url: db.beat(Worker("w", "play")), lambda db, url: db.log_error({"error": "e"}), lambda db, url: db.leave("w"),
    ],
    "read weights, run config, state": [lambda db, url: db.get_weights(), lambda db, url: db.meta(), lambda db, url: db.state()],
    "read sessions, workers, logs": [
        lambda db, url: db.read("0-0", 1), lambda db, url: db.newest(1), lambda db, url: db.workers(), lambda db, url: db.episodes(),
        lambda db, url: db.metrics(), lambda db, url: db.errors(),
    ],
    "publish weights, control the run (`train`, `stop`, `clear`)": [
        lambda db, url: db.acquire_lease(ME), lambda db, url: db.put_weights(b"new", 4, holder=ME), lambda db, url: db.report(capacity=1, sampled=1.0),
        lambda db, url: db.log_metrics({"a": 1}), lambda db, url: db.release_lease(ME), lambda db, url: db.ask_stop(),
        lambda db, url: db.clear(), lambda db, url: db.create({"spec": "other"}),
    ],
    "read the names of all runs": [lambda db, url: list_runs(url)],
    "read or change another run": [
        lambda db, url: RedisDatabase(url, "other").state(), lambda db, url: RedisDatabase(url, "other").get_weights(),
        lambda db, url: RedisDatabase(url, "other").append([b"x"]), lambda db, url: RedisDatabase(url, "other").clear(),
    ],
    "administer the server: scripts, configuration, users, other keys": [
        functools.partial(command, words=words) for words in (*FORBIDDEN, ("ACL", "SETUSER", "x", "on"), ("ACL", "WHOAMI"))
    ],
}  # fmt: skip


@pytest.mark.parametrize(("who", "what", "allowed"), table(), ids=lambda value: str(value)[:30])
def test_each_does_what_the_page_on_security_says_and_no_more(place: Place, who: str, what: str, allowed: bool) -> None:
    urls = {**place.urls, "no password": "unix://" + place.admin.partition("@")[2]}
    with contextlib.closing(RedisDatabase(urls[who], RUN)) as database:
        for act in ACTS[what]:
            if allowed:
                act(database, urls[who])
                continue
            with pytest.raises(
                (DatabaseError, redis.RedisError),
                match="does not permit|refuses|permission|not allowed|NOAUTH|required",
            ):
                act(database, urls[who])


def test_a_player_can_play(place: Place) -> None:
    player = place.player
    assert player.meta()["spec"] == "s" and player.get_weights() == (3, b"weights")
    state = player.append([b"a", b"b"], worker=Worker("play-1", "play"), episodes=[{"return": 1.0, "length": 2}])
    assert (state.inserted, state.version) == (3, 3) and state == player.state() == player.beat(
        Worker("play-1", "play")
    )
    player.count(human=2)
    player.log_error({"error": "e"})
    assert read_all(place.trainer) == [b"session", b"a", b"b"]
    assert [worker.id for worker in place.trainer.workers()] == ["play-1"]
    player.leave("play-1")
    assert place.viewer.workers() == [] and place.viewer.counters() == {"human": 2}


def test_a_player_cannot_write_weights_nor_lead_the_run(place: Place) -> None:
    player, state = place.player, place.trainer.state()
    for attempt in (
        lambda: player.put_weights(b"mine", 4, holder=ME), lambda: player.acquire_lease("me:1:x"), player.ask_stop,
        lambda: player.release_lease(ME), player.clear, lambda: player.create({"spec": "other"}),
        lambda: player.report(capacity=1, sampled=1e9), lambda: player.log_metrics({"a": 1}), player.workers,
        lambda: player.read("0-0", 1), lambda: player.newest(1), player.episodes,
    ):  # fmt: skip
        with denied():
            attempt()
    assert place.trainer.state() == state and place.trainer.get_weights() == (3, b"weights")


WRITES = [
    ("SET", "w:3", "x"), ("SET", "lease", "x"), ("HSET", "w:cur", "version", "9"), ("HSET", "meta", "run_id", "x"), ("HSET", "stat", "stop", "9"),
    ("HINCRBY", "stat", "stop", "1"), ("HINCRBY", "w:cur", "version", "9"), ("HDEL", "meta", "run_id"), ("HDEL", "w:cur", "version"),
    ("UNLINK", "w:3"), ("UNLINK", "sessions"), ("XADD", "metrics", "*", "a", "b"), ("XADD", "w:4", "*", "a", "b"), ("XTRIM", "episodes", "MAXLEN", "0"),
    ("HSET", "tally", "inserted", "x"), ("XRANGE", "sessions", "-", "+"), ("HGETALL", "hb"), ("GET", "lease"), ("HINCRBY", "hb", "x", "1"),
]  # fmt: skip


@pytest.mark.parametrize("command", WRITES, ids=lambda command: " ".join(command[:2]))
def test_a_player_cannot_do_it_by_hand(place: Place, command: tuple[str, ...]) -> None:
    name, key, *rest = command
    with connect(place.urls["player"]) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(name, f"tv:{{{RUN}}}:{key}", *rest)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("command", [*FORBIDDEN, ("ACL", "WHOAMI"), ("SUBSCRIBE", "tv:x"), ("XADD", Keys("other").sessions, "*", "s", "x"), ("GET", Keys("other").weights(3)), ("HGETALL", Keys("other").meta), ("DUMP", Keys(RUN).meta), ("SORT", Keys(RUN).sessions), ("COPY", Keys(RUN).meta, Keys(RUN).sessions), ("OBJECT", "ENCODING", Keys(RUN).meta)], ids=lambda command: " ".join(map(str, command[:2])))  # fmt: skip
def test_no_role_administers_or_sees_another_run(place: Place, role: str, command: tuple[Any, ...]) -> None:
    with connect(place.urls[role]) as client, pytest.raises(redis.ResponseError, match="permission|not allowed"):
        client.execute_command(*command)


def test_a_viewer_only_looks(place: Place) -> None:
    viewer = place.viewer
    assert viewer.meta()["spec"] == "s" and viewer.get_weights() == (3, b"weights") and read_all(viewer) == [b"session"]
    assert viewer.size()["sessions"] == 1 and viewer.episodes() == viewer.metrics() == viewer.errors() == []
    assert list_runs(place.urls["viewer"]) == ["other", RUN]
    for attempt in (
        lambda: viewer.append([b"x"]), lambda: viewer.beat(Worker("w", "play")), lambda: viewer.put_weights(b"", 9, holder=ME),
        viewer.clear, viewer.ask_stop, lambda: viewer.count(rejected=1), lambda: viewer.leave("x"),
    ):  # fmt: skip
        with denied():
            attempt()


def test_a_viewer_of_stale_workers_leaves_them(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.trainer.beat(Worker("play-1", "play"))
    monkeypatch.setattr("tinyverse.database.base.STALE_AFTER", 0.0)
    assert place.viewer.workers() == []


def test_a_trainer_does_all_of_its_own_run(place: Place) -> None:
    place.trainer.clear()
    DatabaseContract().fill(place.trainer)
    place.trainer.clear()
    with pytest.raises(DatabaseError, match="does not permit"):
        RedisDatabase(place.urls["trainer"], "other").state()


def test_a_full_server_lets_players_go_on(place: Place) -> None:
    with connect(place.admin) as admin:
        admin.config_set("maxmemory", "32mb")
        try:
            for _ in range(80):
                place.player.append([bytes(500_000)])
        finally:
            admin.config_set("maxmemory", "0")
    assert place.trainer.state().inserted == 81


def test_new_passwords_shut_the_old_ones_out(server: Place) -> None:
    old = make_users("again", server.admin)
    connected = [RedisDatabase(old[role], "again") for role in ROLES]
    for database in connected:
        database.state()
    new = make_users("again", server.admin)
    for database in connected:  # the connection is cut, and the old password opens no other
        with pytest.raises(DatabaseError):
            database.state()
        with pytest.raises(DatabaseError, match="refuses user"):
            database.state()
    with pytest.raises(DatabaseError, match="refuses user 'player.again'"):
        RedisDatabase(old["player"], "again").meta()
    assert RedisDatabase(new["player"], "again").meta() == {}


def test_who_may_not_make_users_is_told_so(place: Place) -> None:
    with pytest.raises(ServerError, match="may not make others") as caught:
        make_users(RUN, place.urls["trainer"])
    assert place.urls["trainer"].split(":")[2].partition("@")[0] not in str(caught.value)


# what a hostile player writes, and who reads it


def test_rubbish_in_logs_and_heartbeats_is_passed_over(place: Place) -> None:
    keys = Keys(RUN)
    with connect(place.urls["player"]) as client:
        for row in (b"{", b"[]", b"\xff", b"[" * 100_000):
            client.xadd(keys.episodes, {"row": row})
        client.xadd(keys.episodes, {"other": "field"})
        client.xadd(keys.sessions, {"other": "field"})
        for number, beat in enumerate(
            (
                "{",
                '{"id": "a", "role": "play", "at": 1, "steps_per_second": "x"}',
                "[" * 100_000,
                '{"id": 1, "role": [], "at": 1e999}',
            )
        ):
            client.hset(keys.heartbeats, str(number), beat)
        client.hincrby(keys.tally, b"count:\xff", 1)
        client.xadd(keys.episodes, {"row": '{"return": "x"}'})
        client.xadd(keys.errors, {"row": '{"error": 1}'})
    place.player.append(
        [], episodes=[{"return": 1.0, "length": 1}], worker=Worker("good", "play", error="a\x1b[31m\nb")
    )
    assert place.viewer.episodes(1) == [{"return": 1.0, "length": 1}]
    assert [(worker.id, worker.error) for worker in place.viewer.workers()] == [("good", "a?[31m\nb")]
    with connect(place.admin) as admin:
        admin.hset(keys.meta, mapping=run_config("pong", {}, a_spec()))
    facts = gather(place.viewer, RUN)
    assert (facts["mean_return"], facts["errors"]) == (1.0, [])
    assert read_all(place.trainer) == [b"session", b""] and len(place.viewer.counters()) == 1


@pytest.mark.skipif(server_config.find_binary()[1] < OLDEST, reason="this server cannot keep roles apart")
def test_the_local_server_knows_its_users_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import tempfile

    folder = tempfile.mkdtemp(dir="/tmp")
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", folder)
    for name in ("TINYVERSE_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    try:
        urls = make_users(RUN)
        assert urls["player"].startswith("unix://player.pong:")
        assert redis_server.stop()
        redis_server.start()
        assert RedisDatabase(urls["player"], RUN).append([b"x"]).inserted == 1
        with denied():
            RedisDatabase(urls["viewer"], RUN).append([b"x"])
    finally:
        redis_server.stop()
        shutil.rmtree(folder)


def test_sessions_far_too_large_do_not_stop_a_trainer(place: Place) -> None:
    """The server cuts the line at an answer that is too long: fewer are asked for then, and each is rejected."""
    from tests.helpers.people import a_trainer
    from tests.trainer.test_trainer import some_sessions

    database = RedisDatabase(place.admin, "flooded")
    trainer = a_trainer(database)
    trainer.join()
    for _ in range(12):
        database.append([bytes(2 << 20)])
    database.append([some_sessions(1)[0].encode()])
    with connect(place.admin) as admin:
        admin.config_set("client-output-buffer-limit", "normal 8mb 0 0")
        try:
            for _ in range(20):
                with contextlib.suppress(DatabaseLost):
                    trainer.feed()
        finally:
            admin.config_set("client-output-buffer-limit", "normal 0 0 0")
    assert sum(trainer.feeder.rejected.values()) == 12 and len(trainer.replay) == 1
    database.clear()
    database.close()


def test_a_server_that_cannot_keep_roles_apart_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyverse.database.users.OLDEST", (99, 0))
    with pytest.raises(ServerError, match=r"roles want Redis 7.0 or newer, or Valkey"):
        make_users("new", place.admin)
