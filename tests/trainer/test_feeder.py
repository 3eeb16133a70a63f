"""Intake: each session once, checked and counted, with its place in the stream; over restarts and new streams too."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.helpers.people import LENGTH, a_player, a_spec
from tests.trainer.test_trainer import some_sessions
from tinyverse.core import distributed
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Uniform
from tinyverse.trainer.feeder import Intake


def an_intake(sampler=None, size=50, **options):
    return Intake(Replay(a_spec(), ReplayConfig(batch=2, buffer_size=size), sampler or Fresh()), **options)


def take(intake, sessions, first=1):
    """What the intake said of each."""
    return [intake.take(f"{first + n}-0", session.encode()) for n, session in enumerate(sessions)]


def steps(sessions):
    return sum(int(session.alive.sum()) for session in sessions)


def test_a_session_is_stored_and_what_was_played_in_it_is_counted():
    intake, sessions = an_intake(), some_sessions(8)
    assert take(intake, sessions) == [""] * 8
    ended = [episode for session in sessions for episode in session.episodes]
    assert (len(intake.replay), intake.position) == (8, "8-0")
    assert (intake.steps, intake.episodes) == (steps(sessions), len(ended)) and ended
    row = intake.row()
    assert row["play/return"] == pytest.approx(np.mean([total for total, _ in ended]))
    assert row["play/return_low"] <= row["play/return"] <= row["play/return_high"]
    assert (row["play/episodes"], row["replay/rejected"]) == (len(ended), 0)


def test_what_a_person_played_counts_as_steps_but_not_in_the_curve():
    intake, sessions = an_intake(), some_sessions(8)
    take(intake, [dataclasses.replace(one, metadata={**one.metadata, "human": "1"}) for one in sessions])
    assert intake.steps == steps(sessions) and intake.episodes == 0 and not intake.returns


def test_what_is_rejected_is_named_and_owed_to_nobody(caplog):
    intake, (good, other) = an_intake(), some_sessions(2)
    longer, _ = a_player(MemoryDatabase(), games=1, length=LENGTH + 1)
    longer.version = longer.update = 0
    (stranger,) = longer.play().sessions("q", 0)
    said = take(intake, [good, good, stranger])
    assert said[:2] == ["", "it came twice"] and "session.observations is int32 (7, 3), this run's" in said[2]
    assert intake.take("4-0", b"junk") and intake.take("5-0", other.encode()) == ""
    assert (intake.position, intake.steps, len(intake.replay)) == ("5-0", steps([good, other]), 2)
    assert intake.row()["replay/rejected"] == sum(intake.rejected.values()) == caplog.text.count("was rejected") == 3
    assert intake.replay.debt == 2  # for those that were taken


def test_only_so_many_reasons_are_remembered(monkeypatch):
    intake = an_intake()
    for number in range(120):
        monkeypatch.setattr("tinyverse.core.session.SessionSpec.decode", refuse(f"reason {number} " + "x" * 300))
        said = intake.take(f"{number}-0", b"")
    assert said == "for yet another reason" and len(intake.rejected) == 101
    assert sum(intake.rejected.values()) == 120 and max(map(len, intake.rejected)) == 200


def refuse(reason):
    from tinyverse.core.errors import SpecError

    def decode(*_):
        raise SpecError(reason)

    return decode


def test_of_another_rank_it_is_counted_and_not_stored(monkeypatch):
    monkeypatch.setattr(distributed, "is_mine", lambda player, sequence: sequence % 2 == 0)
    intake, sessions = an_intake(), some_sessions(6)
    take(intake, sessions)
    assert (len(intake.replay), intake.replay.received, intake.steps) == (3, 6, steps(sessions))


@pytest.mark.parametrize("sampler", [Fresh, Uniform])
def test_after_a_restart_nothing_counts_twice_and_fresh_does_not_even_read_it(sampler):
    intake, sessions = an_intake(sampler()), some_sessions(6)
    intake.go_on_from("4-0")
    assert intake.position == ("4-0" if sampler is Fresh else "0-0")
    take(intake, sessions)
    assert intake.steps == steps(sessions[4:])
    if sampler is Fresh:  # the replay was given sessions that had been learned from: they are not fresh
        assert intake.replay.sampler.pending() == 2


def test_the_end_settles_what_was_lost():
    intake = an_intake(Uniform())
    take(intake, some_sessions(3))
    intake.at_the_end(inserted=10)
    assert intake.caught_up and (intake.replay.received, intake.replay.debt) == (10, 0)
    take(intake, some_sessions(2, start=3), first=4)
    intake.at_the_end(inserted=15)
    assert (intake.replay.received, intake.replay.debt) == (15, 2)


def test_its_state_goes_on_elsewhere():
    first, second, sessions = an_intake(), an_intake(), some_sessions(8)
    take(first, sessions[:6])
    second.load_counters(first.state_dict())
    second.load_counters(first.state_dict())  # as rank 0 does, which gave it itself
    assert second.counters() == first.counters() and second.position == "0-0"
    second.load_place(first.state_dict())
    assert second.take("6-0", sessions[5].encode()) == "it came twice"
    for intake in (first, second):
        take(intake, sessions[6:], first=7)
    assert second.state_dict() == first.state_dict()


def test_new_streams_begin_at_their_beginning_and_counters_go_on():
    intake, sessions = an_intake(), some_sessions(2)
    take(intake, sessions)
    intake.at_the_end(2)
    intake.begin_anew()
    assert (intake.position, intake.counted, intake.learned, intake.caught_up) == ("0-0", "0-0", "0-0", False)
    assert take(intake, sessions) == ["", ""]  # numbers begin again with the streams
    assert intake.steps == 2 * steps(sessions)
