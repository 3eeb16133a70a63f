"""The player's loop: weights change at sessions' borders, back-pressure, stop signals, new incarnations of a run."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from tests.helpers.counting import CountingEnv
from tests.helpers.people import (
    HOLDER,
    LENGTH,
    Beside,
    Flaky,
    a_player,
    a_spec,
    playing,
    publish,
    sessions_of,
    until,
)
from tinyverse.core.errors import DatabaseError
from tinyverse.core.run_config import run_config
from tinyverse.envs.pool import SerialPool
from tinyverse.player.loop import play


def test_version_and_weights_change_together_at_sessions_borders(database):
    publish(database, 0)
    player, uploader = a_player(database)
    with playing(player, uploader):
        for version in range(1, 6):
            until(lambda: uploader.worker.version >= version - 1 and database.state().inserted > 0)
            publish(database, version)
        until(lambda: player.version == 5)
        done = database.state().inserted
        until(lambda: database.state().inserted > done + 10)
    uploader.close()
    seen = []
    for session in sessions_of(database):
        version = int(session.metadata["version"])
        assert session.metadata["update"] == str(10 * version)
        assert (session.extras["weight"] == version).all()  # in every row
        seen.append(version)
    assert seen == sorted(seen)
    assert set(seen) >= {0, 5}


def test_weights_that_arrive_within_a_session_are_used_from_the_next(database):
    publish(database, 0)
    entered, go_on = threading.Event(), threading.Event()

    class Slow(CountingEnv):
        def step(self, action):
            if entered.is_set() is False and self.episode >= 2:
                entered.set()
                assert go_on.wait(10)
            return super().step(action)

    player, uploader = a_player(database, pool=SerialPool(Slow, 1))
    with playing(player, uploader):
        assert entered.wait(10)
        publish(database, 1)
        until(uploader._ready.is_set)  # the spare agent has them, in the middle of a session
        assert player.version == 0
        go_on.set()
        until(lambda: player.version == 1)
        done = database.state().inserted
        until(lambda: database.state().inserted > done + 3)
    uploader.close()
    for session in sessions_of(database):
        assert (session.extras["weight"] == int(session.metadata["version"])).all()
    assert {session.metadata["version"] for session in sessions_of(database)} == {"0", "1"}


def test_sync_every_looks_for_weights_now_and_then_only(database):
    publish(database, 0)
    player, uploader = a_player(database, num_envs=1)
    versions = []

    def note():
        versions.append(player.version)
        publish(database, database.state().version + 1)
        uploader.heard.clear()
        uploader.heard.wait(0.02)

    with playing(player, uploader, batches=12, sync_every=4, on_batch=note) as task:
        assert task.finish() == 12
    uploader.close()
    played = [int(session.metadata["version"]) for session in sessions_of(database)]
    assert len(played) == 12
    changes = [at for at in range(1, 12) if played[at] != played[at - 1]]
    assert 1 <= len(changes) <= 3  # a look each 4 batches, and what it finds is used when it has come


def test_without_weights_a_player_waits_and_says_so(database, record_property):
    player, uploader = a_player(database)
    with playing(player, uploader):
        until(lambda: [w.waits_for for w in database.workers()] == ["a trainer's weights"])
        assert database.state().inserted == 0
        publish(database, 0)
        began = time.monotonic()
        until(lambda: database.state().inserted > 0)
        record_property("goes on", round(time.monotonic() - began, 2))
        until(lambda: [w.waits_for for w in database.workers()] == [""])
    uploader.close()


def test_a_player_waits_at_the_allowance_and_goes_on_when_sessions_are_delivered(database):
    database.report(max_ahead=6, reuse=1.0, sampled=0)
    publish(database, 0)
    player, uploader = a_player(database, num_envs=2)
    with playing(player, uploader):
        until(lambda: any("samples behind" in w.waits_for for w in database.workers()))
        until(lambda: database.state().inserted == 8)  # begun at a debt of 6, which is allowed
        assert uploader.may_play() is False
        database.report(sampled=2)
        until(lambda: database.state().inserted == 10)
        until(lambda: database.state().deficit == 8 and not uploader._rollouts.unfinished_tasks)
        database.report(sampled=10)
        until(lambda: database.state().inserted == 18)
        until(lambda: any("samples behind" in w.waits_for for w in database.workers()))
        assert database.state().inserted == 18
    uploader.close()


def test_heartbeats_say_what_a_players_time_goes_into(database):
    publish(database, 0)
    player, uploader = a_player(database, num_envs=2)
    with playing(player, uploader):
        (stages,) = until(lambda: [worker.stages for worker in database.workers() if worker.stages])
    uploader.close()
    assert set(stages) == {"environment", "act"} and 0 < sum(stages.values()) <= 1


def test_realtime_never_waits_but_drops_and_counts(database):
    database.report(max_ahead=0, reuse=1.0, sampled=0)
    publish(database, 0)
    gate = threading.Event()

    class Stuck(Flaky):
        def append(self, blobs, **options):
            if blobs:
                assert gate.wait(20)
            return self.database.append(blobs, **options)

    player, uploader = a_player(Stuck(database, "nothing"), num_envs=2)
    with playing(player, uploader, batches=20, realtime=True) as task:
        assert task.finish() == 20  # although nothing gets through
        dropped = uploader.worker.dropped
        assert 2 * (20 - 5) <= dropped <= 2 * 20
        gate.set()
        uploader.close()
    sessions = sessions_of(database)
    assert len(sessions) + dropped == 40
    assert [int(session.metadata["sequence"]) for session in sessions] == list(range(len(sessions)))


def test_stop_ends_it_also_while_it_waits(database):
    for has_weights in (False, True):
        player, uploader = a_player(database)
        with playing(player, uploader) as task:
            until(lambda: uploader.heard.is_set() or uploader.worker.waits_for or database.state().inserted)
            database.ask_stop()
            task.finish()
        uploader.close()
        assert not uploader.is_alive()
        if not has_weights:
            publish(database, 0)


def test_a_stop_from_before_does_not_count(database):
    database.ask_stop()
    publish(database, 0)
    player, uploader = a_player(database)
    with playing(player, uploader, batches=3) as task:
        assert task.finish() == 3
    uploader.close()
    assert database.state().inserted == 6


def test_a_player_stops_while_the_database_is_lost(database, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("tinyverse.player.uploader.CLOSING_SECONDS", 0.2)
    publish(database, 0)
    player, uploader = a_player(Flaky(database, "append", before=set(range(5, 1_000_000))))
    with caplog.at_level(logging.ERROR):
        with playing(player, uploader) as task:
            until(lambda: uploader.waiting.reason == "the database")
            task.stop.set()
            task.finish()
        uploader.close()


def test_a_new_epoch_means_to_wait_for_its_weights(database):
    publish(database, 8)
    player, uploader = a_player(database)
    with playing(player, uploader, sync_every=3):
        until(lambda: database.state().inserted > 20)
        database.clear()
        until(lambda: any(w.waits_for == "a trainer's weights" for w in database.workers()))
        database.create(run_config("counting", {}, a_spec()))
        database.acquire_lease(HOLDER)
        publish(database, 1)  # a smaller version than before: versions count within an epoch
        until(lambda: any(session.metadata["version"] == "1" for session in sessions_of(database)))
        assert player.version == 1
        assert player.agent.weight == 1
    uploader.close()


def test_realtime_plays_on_after_a_new_epoch_but_pushes_nothing_of_the_old_one(database):
    publish(database, 8)
    player, uploader = a_player(database)
    with playing(player, uploader, realtime=True):
        until(lambda: database.state().inserted > 20)
        database.clear()
        until(lambda: player.version == -1)
        dropped, steps = uploader.worker.dropped, player.rate.total
        until(lambda: player.rate.total > steps + 20 * LENGTH)  # although there are no weights
        assert uploader.worker.dropped > dropped and uploader.waiting.reason == ""
        database.create(run_config("counting", {}, a_spec()))
        database.acquire_lease(HOLDER)
        publish(database, 1)
        until(lambda: any(session.metadata["version"] == "1" for session in sessions_of(database)))
    uploader.close()
    assert {session.metadata["version"] for session in sessions_of(database)} <= {"1", "8"}


def test_an_emptied_server_is_no_stop_and_a_later_stop_is_one(database):
    database.ask_stop()
    publish(database, 0)
    player, uploader = a_player(database)
    with playing(player, uploader) as task:
        until(lambda: database.state().inserted > 4)
        database._reset(keep_weights=False)  # as FLUSHALL does: `stop` is 0 again
        database.create(run_config("counting", {}, a_spec()))
        database.acquire_lease(HOLDER)
        publish(database, 0)
        until(lambda: database.state().inserted > 4)
        assert task.is_alive()
        database.ask_stop()
        task.finish()
    uploader.close()


def test_a_dead_uploader_raises_where_the_games_are_played(database):
    publish(database, 0)

    class Refusing(Flaky):
        def append(self, blobs, **options):
            if blobs and self.database.state().inserted > 4:
                raise DatabaseError("These sessions take 300 MiB.")
            return self.database.append(blobs, **options)

    player, uploader = a_player(Refusing(database, "nothing"))
    uploader.start()
    task = Beside(lambda should_stop: play(player, uploader, should_stop=should_stop))
    task.start()
    with pytest.raises(DatabaseError, match="300 MiB"):
        task.finish()
    with pytest.raises(DatabaseError, match="300 MiB"):  # also when nothing is left to play
        play(player, uploader, batches=0)


def test_an_error_of_the_environment_is_raised_at_once(database):
    publish(database, 0)

    class Broken(CountingEnv):
        def step(self, action):
            raise ZeroDivisionError("of the environment")

    player, uploader = a_player(database, pool=SerialPool(Broken, 1))
    uploader.start()
    task = Beside(lambda should_stop: play(player, uploader, should_stop=should_stop))
    task.start()
    with pytest.raises(ZeroDivisionError):
        task.finish()
    uploader.close()
