"""Uploader: sessions reach the database whole and once, also when it is lost; bad weights are refused; nothing waits for ever."""

from __future__ import annotations

import logging
import time

import pytest

from tests.helpers.counting import CountingAgent, CountingEnv
from tests.helpers.people import (
    HOLDER,
    LENGTH,
    Flaky,
    a_player,
    a_run,
    a_trainer,
    playing,
    publish,
    sessions_of,
    until,
)
from tinyverse.core.errors import SpecError
from tinyverse.database.base import new_worker
from tinyverse.envs.pool import SerialPool
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader


def test_large_sessions_are_sent_in_parts(database, monkeypatch):
    monkeypatch.setattr("tinyverse.player.uploader.AT_ONCE", 1)  # byte: no two fit
    sizes, append = [], database.append
    monkeypatch.setattr(database, "append", lambda blobs, **rest: (sizes.append(len(blobs)), append(blobs, **rest))[1])
    player, uploader = a_player(database, num_envs=3)
    publish(database, 0)
    playing(player, uploader, batches=2).__enter__()
    until(lambda: len(sessions_of(database)) == 6)
    uploader.close()
    assert [size for size in sizes if size] == [1] * 6
    assert sorted(int(session.metadata["sequence"]) for session in sessions_of(database)) == list(range(6))


def test_sessions_on_their_way_count_against_the_allowance(database):
    database.report(max_ahead=2.0, reuse=1.0)
    publish(database, 0)
    player, uploader = a_player(database, num_envs=2)  # the uploader does not run
    assert uploader.may_play()
    player.version = 0
    assert uploader.offer(player.play(), timeout=0.0)
    assert uploader.may_play()  # 2 are ahead, 2 are allowed
    assert uploader.offer(player.play(), timeout=0.0)
    assert not uploader.may_play()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_database_loses_nothing_and_repeats_visibly(database, when, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.player.uploader.RETRY_SECONDS", 0.01)
    publish(database, 0)
    pushes = {3, 4, 9, 15}
    player, uploader = a_player(Flaky(database, "append", **{when: pushes}), num_envs=2)
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
    player, uploader = a_player(flaky, num_envs=2)
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
        assert time.monotonic() - began < 20.0
        until(lambda: not uploader.is_alive())


class Fragile(CountingAgent):
    """Refuses weight 13, as a network of other shapes would."""

    def set_weights(self, weights):
        if weights["weight"] == 13:
            raise SpecError("Weight 'weight' does not fit.")
        super().set_weights(weights)


@pytest.mark.parametrize("bad", ["damaged", "refused"])
def test_bad_weights_are_refused_and_the_old_ones_stay(database, bad, caplog):
    publish(database, 0)
    pool = SerialPool(CountingEnv, 2)
    uploader = Uploader(database, new_worker("play", num_envs=2), Fragile())
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


def test_swapping_and_fetching_at_once_never_disagree(database):
    """Weights are published as fast as can be, while the player asks for them as fast as can be."""
    publish(database, 0)
    player, uploader = a_player(database, num_envs=1)
    uploader.waiting.set("to turn fast")
    uploader.start()
    agent, swaps, ends = player.agent, 0, time.monotonic() + 1.0
    version = 0
    while time.monotonic() < ends:
        version += 1
        publish(database, version)
        uploader.refresh()
        found = uploader.swap(agent)
        if found is not None:
            agent, number, update = found
            assert (float(agent.weight[0]), update) == (number, 10 * number)
            swaps += 1
    uploader.close()
    assert swaps > 5


def test_heartbeats_tell_what_a_player_does(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    player, uploader = a_player(database)
    with playing(player, uploader):
        until(lambda: any(w.sessions >= 2 for w in database.workers()))
        (worker,) = (w for w in database.workers() if w.role == "play")
        assert (worker.id, worker.num_envs, worker.version) == (uploader.worker.id, 2, 0)
        assert worker.steps > 0
        assert worker.steps_per_second > 0
    uploader.close()
    assert all(new_worker("play").id != uploader.worker.id for _ in range(3))
