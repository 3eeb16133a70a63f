"""Player and Uploader: weights change at sessions' borders, back-pressure, lost databases; and nothing waits for ever."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from tests.helpers.counting import CountingAgent, CountingEnv, clock
from tests.helpers.people import LENGTH, Beside, Flaky, a_player, a_run, a_spec, a_trainer, until
from tinyverse.core.errors import DatabaseError, SpecError
from tinyverse.core.run_config import run_config
from tinyverse.core.weights import encode_weights
from tinyverse.database.base import BEGINNING, new_worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.envs.pool import GamePool
from tinyverse.player.loop import play
from tinyverse.player.player import SEEDS_APART, Player
from tinyverse.player.uploader import Uploader

HOLDER = "host:1:test"


@pytest.fixture
def database():
    """A run with nobody at work, whose players need not wait."""
    database = MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    database.acquire_lease(HOLDER)
    return database


def publish(database, version, weight=None, update=None):
    numbers = {"version": version, "update": 10 * version if update is None else update, "step": 0}
    blob = encode_weights({"weight": np.array([version if weight is None else weight], np.float32)}, **numbers)
    database.put_weights(blob, version, holder=HOLDER, update=numbers["update"], step=0)


def sessions_of(database):
    inner = getattr(database, "database", database)
    return [a_spec().decode(blob) for _, blob in inner.read(BEGINNING, 100_000)[0]]


def playing(player, uploader, **options):
    """`play` beside the test, with its uploader started."""
    uploader.start()
    return Beside(lambda should_stop: play(player, uploader, should_stop=should_stop, **options))


def test_a_rollout_is_one_session_per_game_numbered_in_order(database):
    player, uploader = a_player(database, games=3)
    player.version, player.update = 4, 44
    rollout = player.play()
    assert clock(rollout.observations).shape == (LENGTH + 1, 3, 3)
    sessions = rollout.sessions("someone", 7)
    for game, session in enumerate(sessions):
        np.testing.assert_array_equal(session.observations, rollout.observations[:, game])
        np.testing.assert_array_equal(session.rewards, rollout.rewards[:, game])
        assert session.episodes == rollout.episodes[game]
        assert {name: session.metadata[name] for name in ("player", "sequence", "version", "update")} == {
            "player": "someone", "sequence": str(7 + game), "version": "4", "update": "44",
        }  # fmt: skip
    assert uploader.worker.games == 3


def test_two_pools_taken_in_turn_play_what_each_would_play_alone():
    both = Player(CountingAgent(), [GamePool(CountingEnv, 2), GamePool(CountingEnv, 3)], LENGTH, seed=5)
    alone = [
        Player(CountingAgent(), GamePool(CountingEnv, games), LENGTH, seed=seed)
        for games, seed in ((2, 5), (3, 5 + SEEDS_APART))
    ]
    assert both.num_games == 5
    for _ in range(20):
        rollout, parts = both.play(), [player.play() for player in alone]
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "alive"):
            got = getattr(rollout, name)
            np.testing.assert_array_equal(got, np.concatenate([getattr(part, name) for part in parts], 1))
        np.testing.assert_array_equal(rollout.initial_memory, np.concatenate([part.initial_memory for part in parts]))
        np.testing.assert_array_equal(rollout.extras["saw"], clock(rollout.observations[:-1]))
        assert rollout.episodes == parts[0].episodes + parts[1].episodes
    assert any(rollout.episodes) or not rollout.alive.all()


def test_one_pool_is_stepped_while_the_agent_acts_in_the_other():
    """What is sent to a pool is not received before the agent has acted in the other one."""
    log = []

    class Logged(GamePool):
        def send(self, actions):
            log.append(("send", id(self)))
            super().send(actions)

        def receive(self):
            log.append(("receive", id(self)))
            return super().receive()

    one, other = Logged(CountingEnv, 1), Logged(CountingEnv, 1)
    Player(CountingAgent(), [one, other], 3).play()
    a, b = id(one), id(other)
    turn = [("receive", a), ("send", a), ("receive", b), ("send", b)]
    assert log == [("send", a), ("send", b), *turn, *turn, ("receive", a), ("receive", b)]


def test_large_sessions_are_sent_in_parts(database, monkeypatch):
    monkeypatch.setattr("tinyverse.player.uploader.AT_ONCE", 1)  # byte: no two fit
    sizes, append = [], database.append
    monkeypatch.setattr(database, "append", lambda blobs, **rest: (sizes.append(len(blobs)), append(blobs, **rest))[1])
    player, uploader = a_player(database, games=3)
    publish(database, 0)
    playing(player, uploader, batches=2).__enter__()
    until(lambda: len(sessions_of(database)) == 6)
    uploader.close()
    assert [size for size in sizes if size] == [1] * 6
    assert sorted(int(session.metadata["sequence"]) for session in sessions_of(database)) == list(range(6))


def test_two_rollouts_share_no_memory(database):
    player, _ = a_player(database)
    earlier = player.play()
    kept = [array.copy() for session in earlier.sessions("", 0) for array in session.arrays.values()]
    player.play()
    again = [array for session in earlier.sessions("", 0) for array in session.arrays.values()]
    for before, after in zip(kept, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_one_seed_gives_the_same_games(database):
    same, again, other = (a_player(database, seed=seed)[0].play() for seed in (3, 3, 4))
    np.testing.assert_array_equal(same.observations, again.observations)
    assert (same.observations != other.observations).any()


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

    player, uploader = a_player(database, pool=GamePool(Slow, 1))
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
    player, uploader = a_player(database, games=1)
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
    database.report(allowance=6, reuse=1.0, delivered=0)
    publish(database, 0)
    player, uploader = a_player(database, games=2)
    with playing(player, uploader):
        until(lambda: any("deliveries behind" in w.waits_for for w in database.workers()))
        until(lambda: database.state().inserted == 8)  # begun at a debt of 6, which is allowed
        assert uploader.may_play() is False
        database.report(delivered=2)
        until(lambda: database.state().inserted == 10)
        until(lambda: database.state().debt == 8 and not uploader._rollouts.unfinished_tasks)
        database.report(delivered=10)
        until(lambda: database.state().inserted == 18)
        until(lambda: any("deliveries behind" in w.waits_for for w in database.workers()))
        assert database.state().inserted == 18
    uploader.close()


def test_heartbeats_say_what_a_players_time_goes_into(database):
    publish(database, 0)
    player, uploader = a_player(database, games=2)
    with playing(player, uploader):
        (stages,) = until(lambda: [worker.stages for worker in database.workers() if worker.stages])
    uploader.close()
    assert set(stages) == {"environment", "act"} and 0 < sum(stages.values()) <= 1


def test_sessions_on_their_way_count_against_the_allowance(database):
    database.report(allowance=2.0, reuse=1.0)
    publish(database, 0)
    player, uploader = a_player(database, games=2)  # the uploader does not run
    assert uploader.may_play()
    player.version = 0
    assert uploader.offer(player.play(), timeout=0.0)
    assert uploader.may_play()  # 2 are ahead, 2 are allowed
    assert uploader.offer(player.play(), timeout=0.0)
    assert not uploader.may_play()


def test_realtime_never_waits_but_drops_and_counts(database):
    database.report(allowance=0, reuse=1.0, delivered=0)
    publish(database, 0)
    gate = threading.Event()

    class Stuck(Flaky):
        def append(self, blobs, **options):
            if blobs:
                assert gate.wait(20)
            return self.database.append(blobs, **options)

    player, uploader = a_player(Stuck(database, "nothing"), games=2)
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


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_database_loses_nothing_and_repeats_visibly(database, when, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.01)
    publish(database, 0)
    pushes = {3, 4, 9, 15}
    player, uploader = a_player(Flaky(database, "append", **{when: pushes}), games=2)
    with caplog.at_level(logging.ERROR), playing(player, uploader, batches=20) as task:
        assert task.finish() == 20
    uploader.close()
    numbers = [int(session.metadata["sequence"]) for session in sessions_of(database)]
    assert sorted(set(numbers)) == list(range(40))
    assert (len(numbers) > 40) == (when == "after")
    trainer = a_trainer(database)
    trainer.publisher.holder = HOLDER
    trainer.join()
    trainer.feed()
    assert len(trainer.replay) == 40
    assert sum(trainer.feeder.rejected.values()) == len(numbers) - 40
    assert trainer.feeder.steps == player.rate.total  # each step once


def test_a_database_lost_at_the_end_is_tried_again(database, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.05)
    publish(database, 0)
    flaky = Flaky(database, "append")
    player, uploader = a_player(flaky, games=2)
    player.version = 0
    uploader.offer(player.play(), timeout=0.0)
    flaky.before = set(range(4))
    with caplog.at_level(logging.ERROR):
        uploader.start()
        uploader.close()
    assert not uploader.is_alive()
    assert len(sessions_of(database)) == 2


def test_closing_does_not_wait_for_ever(database, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("tinyverse.player.uploader.CLOSING_SECONDS", 0.3)
    flaky = Flaky(database, "append", before=set(range(100_000)))
    player, uploader = a_player(flaky)
    uploader.offer(player.play(), timeout=0.0)
    uploader.offer(player.play(), timeout=0.0)
    with caplog.at_level(logging.ERROR):
        uploader.start()
        began = time.monotonic()
        uploader.close()
        assert time.monotonic() - began < 2.0
        until(lambda: not uploader.is_alive(), 3.0)


def test_a_player_stops_while_the_database_is_lost(database, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("tinyverse.player.uploader.CLOSING_SECONDS", 0.2)
    publish(database, 0)
    player, uploader = a_player(Flaky(database, "append", before=set(range(5, 1_000_000))))
    with caplog.at_level(logging.ERROR):
        with playing(player, uploader) as task:
            until(lambda: uploader.waiting.reason == "the database")
            task.stop.set()
            task.finish(5.0)
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


class Fragile(CountingAgent):
    """Refuses weight 13, as a network of other shapes would."""

    def set_weights(self, weights):
        if weights["weight"] == 13:
            raise SpecError("Weight 'weight' does not fit.")
        super().set_weights(weights)


@pytest.mark.parametrize("bad", ["damaged", "refused"])
def test_bad_weights_are_refused_and_the_old_ones_stay(database, bad, caplog):
    publish(database, 0)
    pool = GamePool(CountingEnv, 2)
    uploader = Uploader(database, new_worker("play", games=2), Fragile())
    player = Player(Fragile(), pool, LENGTH)
    with caplog.at_level(logging.ERROR), playing(player, uploader):
        until(lambda: player.version == 0)
        if bad == "damaged":
            database.put_weights(b"\x40no weights", 1, holder=HOLDER, update=10, step=0)
        else:
            publish(database, 1, weight=13)
        until(lambda: uploader.worker.error)
        done = database.state().inserted
        until(lambda: database.state().inserted > done + 6)
        assert (player.version, float(player.agent.weight[0])) == (0, 0.0)
        publish(database, 2)
        until(lambda: player.version == 2)
        assert player.agent.weight == 2
    uploader.close()


def test_a_dead_courier_raises_where_the_games_are_played(database):
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

    player, uploader = a_player(database, pool=GamePool(Broken, 1))
    uploader.start()
    task = Beside(lambda should_stop: play(player, uploader, should_stop=should_stop))
    task.start()
    with pytest.raises(ZeroDivisionError):
        task.finish()
    uploader.close()


def test_heartbeats_tell_what_a_player_does(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    player, uploader = a_player(database)
    with playing(player, uploader):
        until(lambda: any(w.sessions >= 2 for w in database.workers()))
        (worker,) = (w for w in database.workers() if w.role == "play")
        assert (worker.id, worker.games, worker.version) == (uploader.worker.id, 2, 0)
        assert worker.steps > 0
        assert worker.steps_per_second > 0
    uploader.close()
    assert all(new_worker("play").id != uploader.worker.id for _ in range(3))


def test_swapping_and_fetching_at_once_never_disagree(database):
    """Weights are published as fast as can be, while the player asks for them as fast as can be."""
    publish(database, 0)
    player, uploader = a_player(database, games=1)
    uploader.waiting.set("to turn fast")
    uploader.start()
    agent, swaps, ends = player.agent, 0, time.monotonic() + 1.0
    version = 0
    while time.monotonic() < ends:
        version += 1
        publish(database, version)
        uploader.look()
        found = uploader.swap(agent)
        if found is not None:
            agent, number, update = found
            assert (float(agent.weight[0]), update) == (number, 10 * number)
            swaps += 1
    uploader.close()
    assert swaps > 5
