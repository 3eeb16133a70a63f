"""ShardedDatabase on real servers: the contract, and a run's sessions in several streams, some of which are lost."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.chaos import Breakable
from tests.helpers.database_contract import ME, DatabaseContract, read_all
from tests.helpers.people import Beside, a_player, a_trainer, until
from tinyverse.cli.context import Asked
from tinyverse.cli.info import do_clear, do_info
from tinyverse.core.codec import UNSEALED
from tinyverse.core.errors import DatabaseLost, RunConflict, SettingsError
from tinyverse.database import sharded_database
from tinyverse.database.base import BEGINNING, Database, State, Worker
from tinyverse.database.position import is_behind
from tinyverse.database.redis import RedisDatabase, list_runs, place_of
from tinyverse.database.server import Server, connect, private_server, several
from tinyverse.database.sharded_database import ShardedDatabase, open_database
from tinyverse.player.loop import play
from tinyverse.replay.config import Flow
from tinyverse.trainer.loop import train

IMPATIENT = 1.2  # seconds until the tests' clients give a server up
STREAMS = 3


def name_for(stream: int, streams: int = STREAMS) -> str:
    """A worker's id whose sessions go to this stream."""
    return next(f"play-{n}" for n in range(1000) if zlib.crc32(f"play-{n}".encode()) % streams == stream)


def a_worker(stream: int, streams: int = STREAMS) -> Worker:
    return Worker(name_for(stream, streams), "play")


@pytest.fixture
def database(redis_url: str) -> Iterator[ShardedDatabase]:
    """Three streams on one server."""
    made = ShardedDatabase([redis_url] * STREAMS, f"test-{secrets.token_hex(4)}", timeout=IMPATIENT)
    yield made
    made.clear()
    made.close()


class TestShardedDatabase(DatabaseContract):
    @pytest.fixture
    def database(self, redis_url: str) -> Iterator[Database]:  # type: ignore[override]
        made = ShardedDatabase([redis_url] * STREAMS, f"test-{secrets.token_hex(4)}")
        yield made
        made.clear()
        made.close()

    # each stream keeps its share of the capacity

    def test_the_newest_are_kept(self, database: Database) -> None:
        database.report(capacity=7)
        for stream in range(STREAMS):
            state = database.append([b"%d %d" % (stream, number) for number in range(5)], worker=a_worker(stream))
        assert sorted(read_all(database)) == [b"%d %d" % (stream, n) for stream in range(3) for n in (2, 3, 4)]
        assert state.inserted == 15 and database.size() == {"sessions": 9, "bytes": 27}

    def test_a_lower_capacity_holds_at_once(self, database: Database) -> None:
        for stream in range(STREAMS):
            database.append([b"%d %d" % (stream, number) for number in range(3)], worker=a_worker(stream))
        database.report(capacity=3)
        assert sorted(read_all(database)) == [b"0 2", b"1 2", b"2 2"]

    def test_a_trimmed_position_reads_from_the_oldest(self, database: Database) -> None:
        database.append([b"a"])
        position = database.read(BEGINNING, 1)[0][0][0]
        database.report(capacity=2 * STREAMS)
        database.append([b"b", b"c", b"d"])
        assert read_all(database, position) == [b"c", b"d"]


# reading


def test_a_position_knows_how_far_each_stream_was_read(database: ShardedDatabase) -> None:
    """Every session once, wherever a reader begins again, and what one has read another knows as read."""
    for number in range(4):
        for stream in range(STREAMS):
            database.append([b"%d %d %d" % (stream, number, n) for n in range(2)], worker=a_worker(stream))
    everything = {b"%d %d %d" % (s, number, n) for s in range(STREAMS) for number in range(4) for n in range(2)}
    for limit in (1, 5, 7, 100):
        after, seen = BEGINNING, []
        while entries := database.read(after, limit)[0]:
            seen += entries
            after = entries[-1][0]
        assert len(seen) == len(everything) and {blob for _, blob in seen} == everything
        middle, first = seen[len(seen) // 2][0], {blob for _, blob in seen[: len(seen) // 2 + 1]}
        assert set(read_all(database, middle)) == everything - first
        again, _ = database.read(BEGINNING, 100)
        assert {blob for position, blob in again if is_behind(position, middle)} == first


def test_a_busy_stream_does_not_keep_the_others_from_being_read(database: ShardedDatabase) -> None:
    database.append([b"busy"] * 50, worker=a_worker(0))
    for stream in (1, 2):
        database.append([b"quiet %d" % stream], worker=a_worker(stream))
    after, seen = BEGINNING, set[bytes]()
    for _ in range(STREAMS):
        entries, _ = database.read(after, 5)
        seen |= {blob for _, blob in entries}
        after = entries[-1][0]
    assert {b"quiet 1", b"quiet 2"} <= seen


def test_the_newest_come_from_all_streams(database: ShardedDatabase) -> None:
    for stream in (2, 0, 1):
        database.append([b"%d" % stream], worker=a_worker(stream))
        time.sleep(0.002)  # ids are milliseconds
    assert [blob for _, blob in database.newest(2)] == [b"0", b"1"]


def test_streams_lie_in_slots_of_their_own_and_leave_nothing(redis_server: Server) -> None:
    with connect(redis_server.admin_url) as admin:
        database = ShardedDatabase([redis_server.url] * 2, "slots")
        before = set(admin.scan_iter())
        database.create({})
        for stream in range(2):
            database.append([b"a"], worker=a_worker(stream, 2))
        made = set(admin.scan_iter()) - before
        assert {b"tv:{slots#0}:sessions", b"tv:{slots#1}:sessions", b"tv:{slots}:meta"} <= made
        assert b"tv:{slots}:sessions" not in made and "slots" in list_runs(admin)
        database.clear()
        database.close()
        assert not list(admin.scan_iter("tv:{slots*"))


# learning


def test_fresh_sessions_of_all_streams_are_learned_from_at_most_once(database: ShardedDatabase) -> None:
    """By one trainer after another, each of which reads the streams in another order."""
    for stream in range(STREAMS):
        player, _ = a_player(database, games=4, seed=100 * stream)
        player.version = 0
        worker = a_worker(stream)
        database.append([session.encode() for session in player.play().sessions(worker.id, 0)], worker=worker)
    opened: list[tuple[int, ...]] = []
    for first in range(STREAMS):
        database._first = first
        trainer = a_trainer(database)
        trainer.join()
        while trainer.feed():
            pass
        for _ in range(2):
            assert trainer.step()
        opened += [tuple(row) for batch in trainer.learner.batches for row in batch.observations[0].tolist()]
        database.release_lease(trainer.holder)
    assert len(opened) == 4 * STREAMS == len(set(opened))
    assert not trainer.step()


# who is ahead


def test_players_are_counted_together_and_a_stream_that_came_twice_is_mended(database: ShardedDatabase) -> None:
    database.create({})
    for stream in range(STREAMS):
        state = database.append([b"a", b"b"], worker=a_worker(stream))
    assert state.inserted == 6 == database.state().inserted == database.read(BEGINNING, 50)[1].inserted
    database._parts[1].append([b"of a push of which the first server did not hear"])
    assert database.state().inserted == 6 and database.read(BEGINNING, 50)[1].inserted == 7
    database.report(delivered=1.0)
    assert database.state().inserted == 7
    database.read(BEGINNING, 50)
    database.report(delivered=1.0)
    assert database.state().inserted == 7


def test_a_push_whose_count_was_lost_is_not_made_twice(
    database: ShardedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, append = [b"a", b"b"], RedisDatabase.append
    tries = iter([True, False])

    def flaky(self: RedisDatabase, blobs: Any, **more: Any) -> State:
        if self is database and next(tries, False):
            raise DatabaseLost("The first server is gone.")
        return append(self, blobs, **more)

    monkeypatch.setattr(RedisDatabase, "append", flaky)
    with pytest.raises(DatabaseLost):
        database.append(blobs)
    assert database.append(blobs).inserted == 2 and read_all(database) == blobs
    assert database.append(blobs).inserted == 4 and read_all(database) == blobs * 2


# agreement


@pytest.mark.parametrize(("made", "asked", "hint"), [(3, 1, "--shards 3"), (3, 2, "--shards 3"), (1, 2, "--shards 1")])
def test_all_workers_name_as_many_shards(redis_url: str, made: int, asked: int, hint: str) -> None:
    run = f"test-{secrets.token_hex(4)}"
    database = open_database(redis_url, run, shards=made)
    database.create({})
    with pytest.raises(RunConflict, match=f"lie on {made} shards?, not on {asked}.*{hint}"):
        open_database(redis_url, run, shards=asked).meta()
    with pytest.raises(RunConflict, match=hint):
        open_database(redis_url, run, shards=asked).create({})
    database.clear()


def test_servers_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_database, "PATIENCE", 0.3)
    with private_server() as first, private_server() as second, private_server() as third:
        open_database(f"{first.url},{second.url},{third.url}", "run").create({})
        other = open_database(f"{first.url},{third.url},{second.url}", "run")
        assert other.append([b"a"], worker=a_worker(0)).inserted == 1
        with pytest.raises(RunConflict, match="shard 2 of run run is not where this command looks for it"):
            other.append([b"a"], worker=a_worker(1))


@pytest.fixture(scope="module")
def four() -> Iterator[dict[str, str]]:
    """URLs of four servers."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(private_server()).url for name in "abcd"}


def urls(four: dict[str, str], names: str) -> str:
    return ",".join(four[name] for name in names)


@pytest.mark.parametrize("names", ["acb", "bac", "cab", "b", "bc", "abd", "dbc", "bd", "da"])
def test_a_trainer_that_names_other_servers_or_another_order_ends_and_changes_nothing(
    four: dict[str, str], names: str
) -> None:
    run = f"test-{secrets.token_hex(4)}"
    database = open_database(urls(four, "abc"), run)
    epoch = database.create({"spec": "x"})["epoch"]
    sessions = [b"%d" % stream for stream in range(STREAMS)]
    for stream, blob in enumerate(sessions):
        database.append([blob], worker=a_worker(stream))
    wanted = ", ".join(place_of(four[name]) for name in "abc")
    with pytest.raises(RunConflict, match=rf"the servers of run {run} are {wanted}, in this|lie on 3 shards"):
        open_database(urls(four, names), run).create({"spec": "x"})
    assert database.create({"spec": "x"}) == {"spec": "x", "epoch": epoch} and sorted(read_all(database)) == sessions
    database.clear()
    for name in "abcd":  # clear left nothing that speaks of the run
        alone = open_database(four[name], run)
        assert alone.meta() == {}
    assert open_database(urls(four, names), run).create({"spec": "y"})["spec"] == "y"
    open_database(urls(four, names), run).clear()


def test_servers_may_be_empty_or_be_called_otherwise(four: dict[str, str]) -> None:
    run = f"test-{secrets.token_hex(4)}"
    first = open_database(urls(four, "abc"), run)
    epoch = first.create({})["epoch"]
    with connect(four["b"]) as client:
        client.unlink(*(f"tv:{{{run}{stream}}}:{name}" for stream in ("", "#1") for name in ("meta", "stat", "tally")))
    again = open_database(urls(four, "abc"), run)
    assert again.create({})["epoch"] == epoch
    renamed = open_database(f"{urls(four, 'ab')},{four['c'].replace('unix:///', 'unix:////')}", run)
    assert renamed.create({})["epoch"] == epoch
    with connect(four["a"]) as client:
        client.unlink(f"tv:{{{run}}}:meta")
    assert open_database(urls(four, "abc"), run).create({})["epoch"] != epoch
    again.clear()


def test_a_wrong_server_that_is_lost_at_first_ends_a_trainer_when_it_answers(shards: Shards) -> None:
    made, empty = shards.database(), [*shards.servers]
    made.create({})
    with Breakable() as third:
        empty[1].kill()
        shards.servers = (empty[0], third)
        third.kill()
        trainer = shards.database()
        trainer.create({})
        third.start()
        with pytest.raises(RunConflict, match="the servers of run team are"):
            until(lambda: trainer.read(BEGINNING, 1) == 0)


def test_what_is_left_of_a_run_on_one_of_its_servers_can_be_cleared(four: dict[str, str]) -> None:
    run = f"test-{secrets.token_hex(4)}"
    made = open_database(urls(four, "ab"), run)
    made.create({})
    asked = Asked("x.py", name=run, redis=four["b"], quiet=True)
    for work in (do_info, do_clear):
        with pytest.raises(RunConflict, match=f"the servers of run {run} are"):
            work(asked)
    do_clear(asked, force=True)
    assert open_database(four["b"], run).meta() == {}
    made.clear()


@pytest.mark.parametrize(("url", "shards"), [("redis://a", 0), ("redis://a,redis://b", 3), ("redis://a,redis://b", 1)])
def test_shards_that_make_no_sense(url: str, shards: int) -> None:
    with pytest.raises(SettingsError, match=f"--shards {shards} with {len(several(url))} server"):
        open_database(url, "run", shards=shards)


def test_seals_are_made_and_checked_in_every_stream(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = f"test-{secrets.token_hex(4)}"
    stranger = open_database(redis_url, run, shards=2)
    monkeypatch.setenv("TINYVERSE_SECRET", "a secret of more than 16 characters")
    trainer, player = (open_database(redis_url, run, shards=2) for _ in range(2))
    trainer.create({})
    for stream in range(2):
        player.append([b"sealed"], worker=a_worker(stream, 2))
        stranger.append([b"forged"], worker=a_worker(stream, 2))
    assert sorted(read_all(trainer)) == sorted([b"sealed", UNSEALED] * 2)
    trainer.clear()


# a lost stream


class Shards:
    """Two servers that can be broken, and databases of a run on both."""

    def __init__(self, *servers: Breakable) -> None:
        self.servers = servers

    def database(self, run: str = "team") -> ShardedDatabase:
        return ShardedDatabase([server.url for server in self.servers], run, timeout=IMPATIENT)


@pytest.fixture
def shards() -> Iterator[Shards]:
    with Breakable() as first, Breakable() as second:
        yield Shards(first, second)


def test_a_lost_stream_costs_its_sessions_only(shards: Shards) -> None:
    trainer, mine, theirs = (shards.database() for _ in range(3))
    trainer.create({})
    trainer.report(capacity=100)
    mine.append([b"mine"], worker=a_worker(0, 2))
    theirs.append([b"lost"], worker=a_worker(1, 2))
    shards.servers[1].kill()
    with pytest.raises(DatabaseLost):
        theirs.append([b"waits"], worker=dataclasses.replace(a_worker(1, 2), error="no answer"))
    assert {worker.error for worker in trainer.workers()} == {"", "no answer"}  # it waits, and is heard of
    entries, state = trainer.read(BEGINNING, 10)
    assert [blob for _, blob in entries] == [b"mine"] and state.inserted == 1
    trainer.beat(Worker("train-1", "train"))
    told = next(worker.error for worker in trainer.workers() if worker.role == "train")
    assert told == "no answer from shard 2 of 2; reading on from the others"
    assert trainer.size()["sessions"] == 1
    shards.servers[1].start()
    until(lambda: not trainer._lost)
    theirs.append([b"waits"], worker=a_worker(1, 2))
    found, state = trainer.read(entries[-1][0], 10)
    assert [blob for _, blob in found] == [b"waits"] and state.inserted == 2
    assert trainer._parts[1].state().capacity == 100
    trainer.report(delivered=0.0)
    assert trainer.state().inserted == 2


def test_when_the_first_server_is_lost_what_the_others_hold_is_not_read_again(shards: Shards) -> None:
    trainer, player = shards.database(), shards.database()
    trainer.create({})
    player.append([b"old"], worker=a_worker(1, 2))
    shards.servers[0].kill()
    with pytest.raises(DatabaseLost):
        trainer.read(BEGINNING, 10)
    shards.servers[0].start()
    assert trainer.state().epoch == ""
    trainer.create({})
    assert trainer.read(BEGINNING, 10)[0] == []
    player.append([b"new"], worker=a_worker(1, 2))
    assert read_all(trainer) == [b"new"]
    assert trainer.acquire_lease(ME)


@pytest.mark.faults
@pytest.mark.parametrize("comes_back", ["empty", "as it was"])
def test_the_trainer_learns_on_when_a_shard_is_killed(shards: Shards, comes_back: str) -> None:
    """Two players, one of each shard: the one goes on, the other waits, and plays again when its server is back."""
    trainer = a_trainer(shards.database(), flow=Flow(batch=2, buffer_size=50), publish_every=2)
    trainer.join()
    players = []
    for stream in range(2):
        player, courier = a_player(shards.database(), games=2, seed=100 * stream)
        courier.worker.id = name_for(stream, 2)
        courier.start()
        players.append((player, courier))
    with contextlib.ExitStack() as stack:
        for player, courier in players:
            stack.enter_context(
                Beside(
                    lambda should_stop, player=player, courier=courier: play(player, courier, should_stop=should_stop)
                )
            )
        stack.enter_context(Beside(lambda should_stop: train(trainer, should_stop=should_stop)))
        (near, _), (far, waits) = players

        def all_go_on(*playing: Any) -> None:
            update, steps = trainer.update, [player.rate.total for player in playing]
            until(lambda: trainer.update > update + 5)
            until(lambda: all(player.rate.total > before for player, before in zip(playing, steps, strict=True)))

        all_go_on(near, far)
        if comes_back == "as it was":
            shards.servers[1].save()
        shards.servers[1].kill()
        until(
            lambda: (
                "no answer from shard 2 of 2" in trainer.database.workers()[0].error + str(trainer.database.workers())
            )
        )
        all_go_on(near)
        until(lambda: waits.worker.error)
        pushed = waits.worker.sessions
        all_go_on(near)
        assert waits.worker.sessions == pushed
        shards.servers[1].start()
        all_go_on(near, far)
    for _, courier in players:
        courier.close()
    assert set(trainer.intake.rejected) <= {"it came twice"}
    opened = [tuple(row) for batch in trainer.learner.batches for row in batch.observations[0].tolist()]
    assert len(opened) == len(set(opened)), "learned from twice"
