"""Feeder: each session once, checked and counted, with its place in the stream; over restarts and new streams too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.helpers.people import LENGTH, a_player, a_spec
from tests.trainer.test_trainer import some_sessions
from tinyverse.database.base import State, new_worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Uniform
from tinyverse.trainer.feeder import Cursor, Feeder
from tinyverse.trainer.ranks import SingleProcess


def a_feeder(sampler=None, size=50, ranks=None):
    replay = Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=size), sampler or Fresh())
    return Feeder(replay, MemoryDatabase(), new_worker("train"), ranks or SingleProcess())


def take(feeder, sessions, first=1):
    """What the feeder said of each."""
    return [feeder.take(f"{first + n}-0", session.encode()) for n, session in enumerate(sessions)]


def steps(sessions):
    return sum(int(session.valid.sum()) for session in sessions)


def test_a_session_is_stored_and_what_was_played_in_it_is_counted():
    feeder, sessions = a_feeder(), some_sessions(8)
    assert take(feeder, sessions) == [""] * 8
    ended = [episode for session in sessions for episode in session.episodes]
    assert (len(feeder.replay), feeder.cursor.read) == (8, "8-0")
    assert (feeder.steps, feeder.episodes) == (steps(sessions), len(ended)) and ended
    row = feeder.row()
    assert row["play/return"] == pytest.approx(np.mean([total for total, _ in ended]))
    assert row["play/return_low"] <= row["play/return"] <= row["play/return_high"]
    assert (row["play/episodes"], row["replay/rejected"]) == (len(ended), 0)


def test_what_a_person_played_counts_as_steps_but_not_in_the_curve():
    feeder, sessions = a_feeder(), some_sessions(8)
    take(feeder, [dataclasses.replace(one, metadata={**one.metadata, "human": "1"}) for one in sessions])
    assert feeder.steps == steps(sessions) and feeder.episodes == 0 and not feeder.returns


def test_what_is_rejected_is_named_and_owed_to_nobody(caplog):
    feeder, (good, other) = a_feeder(), some_sessions(2)
    longer, _ = a_player(MemoryDatabase(), num_envs=1, length=LENGTH + 1)
    longer.version = longer.update = 0
    (stranger,) = longer.play().sessions("q", 0)
    said = take(feeder, [good, good, stranger])
    assert said[:2] == ["", "it came twice"] and "session.observations is int32 (7, 3), this run's" in said[2]
    assert feeder.take("4-0", b"junk") and feeder.take("5-0", other.encode()) == ""
    assert (feeder.cursor.read, feeder.steps, len(feeder.replay)) == ("5-0", steps([good, other]), 2)
    assert feeder.row()["replay/rejected"] == sum(feeder.rejected.values()) == caplog.text.count("was rejected") == 3
    assert feeder.replay.limiter.deficit == 2  # for those that were taken


def test_only_so_many_reasons_are_remembered(monkeypatch):
    feeder = a_feeder()
    for number in range(120):
        monkeypatch.setattr("tinyverse.core.session.SessionSpec.decode", refuse(f"reason {number} " + "x" * 300))
        said = feeder.take(f"{number}-0", b"")
    assert said == "for yet another reason" and len(feeder.rejected) == 101
    assert sum(feeder.rejected.values()) == 120 and max(map(len, feeder.rejected)) == 200


def refuse(reason):
    from tinyverse.core.errors import SpecError

    def decode(*_):
        raise SpecError(reason)

    return decode


class EvenOnes(SingleProcess):
    """A rank whose share is every other session."""

    def is_mine(self, player, sequence):
        return sequence % 2 == 0


def test_of_another_rank_it_is_counted_and_not_stored():
    feeder, sessions = a_feeder(ranks=EvenOnes()), some_sessions(6)
    take(feeder, sessions)
    assert (len(feeder.replay), feeder.replay.limiter.inserted, feeder.steps) == (3, 6, steps(sessions))


@pytest.mark.parametrize("sampler", [Fresh, Uniform])
def test_after_a_restart_nothing_counts_twice_and_fresh_does_not_even_read_it(sampler):
    feeder, sessions = a_feeder(sampler()), some_sessions(6)
    feeder.go_on_from("4-0")
    assert feeder.cursor.read == ("4-0" if sampler is Fresh else "0-0")
    take(feeder, sessions)
    assert feeder.steps == steps(sessions[4:])
    if sampler is Fresh:  # the replay was given sessions that had been learned from: they are not fresh
        assert feeder.replay.sampler.pending() == 2


def test_at_the_end_what_was_lost_is_owed_no_more():
    feeder = a_feeder(Uniform())
    take(feeder, some_sessions(3))
    feeder.at_the_end(inserted=10)
    assert feeder.caught_up and (feeder.replay.limiter.inserted, feeder.replay.limiter.deficit) == (10, 0)
    take(feeder, some_sessions(2, start=3), first=4)
    feeder.at_the_end(inserted=15)
    assert (feeder.replay.limiter.inserted, feeder.replay.limiter.deficit) == (15, 2)


def test_its_state_goes_on_elsewhere():
    first, second, sessions = a_feeder(), a_feeder(), some_sessions(8)
    take(first, sessions[:6])
    second.load_counters(first.state_dict())
    second.load_counters(first.state_dict())  # as rank 0 does, which gave it itself
    assert second.counters() == first.counters() and second.cursor.read == "0-0"
    second.load_cursor(first.state_dict())
    assert second.take("6-0", sessions[5].encode()) == "it came twice"
    for feeder in (first, second):
        take(feeder, sessions[6:], first=7)
    assert second.state_dict() == first.state_dict()


def test_new_streams_begin_at_their_beginning_and_counters_go_on():
    feeder, sessions = a_feeder(), some_sessions(2)
    take(feeder, sessions)
    feeder.at_the_end(2)
    assert feeder.feed() == 0  # its database knows of no such run
    assert (feeder.cursor, feeder.caught_up, feeder.state) == (Cursor(), False, State())
    assert take(feeder, sessions) == ["", ""]  # numbers begin again with the streams
    assert feeder.steps == 2 * steps(sessions)
