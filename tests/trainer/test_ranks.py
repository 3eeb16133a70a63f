"""Ranks: a single process asks nobody; several hear of each other, and what is of another incarnation does not count."""

from __future__ import annotations

import zlib

import pytest

from tests.helpers.people import CountingLearner, a_spec, an_agent
from tinyverse.core import distributed
from tinyverse.core.errors import SettingsError
from tinyverse.database.base import State, new_worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Uniform
from tinyverse.trainer.feeder import Feeder
from tinyverse.trainer.ranks import Agreement, Ranks, SingleProcess, this_process


def a_feeder(run_id="now", learned="7-1", reuse=2.0):
    replay = Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=9, reuse=reuse), Uniform())
    feeder = Feeder(replay, MemoryDatabase(), new_worker("train"), SingleProcess())
    feeder.state, feeder.cursor.learned = State(run_id=run_id), learned
    return feeder


def beside(monkeypatch, *, run_id="now", ready=1.0, bad=0.0, deficit=5.0, cursor=(9, 3)):
    """Two ranks, of which the other says this."""
    said = []

    def exchange(*mine):
        said.append(mine)
        return [mine, (ready, bad, deficit, zlib.crc32(run_id.encode()), *cursor)]

    monkeypatch.setattr(distributed, "exchange", exchange)
    return said


def test_a_single_process_exchanges_nothing(monkeypatch):
    monkeypatch.setattr(distributed, "exchange", lambda *_: pytest.fail("nobody is there"))
    ranks = this_process()
    assert type(ranks) is SingleProcess and (ranks.size, ranks.is_rank_zero, ranks.deficit_elsewhere) == (1, True, 0.0)
    assert ranks.agree(True, False, a_feeder()) == Agreement(has_batch=True, is_bad=False)
    assert ranks.agree(False, True, a_feeder()) == Agreement(has_batch=False, is_bad=True)
    assert [ranks.any_rank(true) for true in (True, False)] == [True, False]
    assert ranks.furthest("5-0", "now") == "5-0" and ranks.is_mine("anyone", 3)


def test_ranks_step_when_all_have_a_batch_and_players_owe_the_poorest(monkeypatch):
    feeder = a_feeder()
    feeder.replay.limiter.inserted += 1
    ranks, said = Ranks(), beside(monkeypatch)
    assert ranks.agree(True, False, feeder) == Agreement(True, False, "")
    assert said == [(True, False, 2.0, zlib.crc32(b"now"), 7, 1)]
    assert ranks.deficit_elsewhere == 2 * 2.0 - 2.0
    beside(monkeypatch, deficit=-3.0)
    ranks.agree(True, False, feeder)
    assert ranks.deficit_elsewhere == 2 * -3.0 - 2.0


def test_who_has_no_batch_is_named_to_those_who_have_one(monkeypatch):
    beside(monkeypatch, ready=0.0, bad=1.0)
    ranks = Ranks()
    assert ranks.agree(True, False, a_feeder()) == Agreement(False, True, "rank 1, which waits for sessions of its own")
    assert ranks.agree(False, False, a_feeder()).waits_for == ""


def test_the_furthest_cursor_is_of_this_incarnation_of_the_run(monkeypatch):
    ranks, feeder = Ranks(), a_feeder()
    beside(monkeypatch, cursor=(10, 0))
    ranks.agree(True, False, feeder)
    assert ranks.furthest("7-1", "now") == "10-0"
    assert ranks.furthest("11-0", "now") == "11-0"
    assert ranks.furthest("0-0", "another") == "0-0"  # the feeder has seen a new one since
    beside(monkeypatch, run_id="before", cursor=(12, 0))
    ranks.agree(True, False, feeder)
    assert ranks.furthest("7-1", "now") == "7-1"  # the other rank has not seen it yet


def test_a_learner_that_does_not_average_over_ranks_is_refused():
    with pytest.raises(SettingsError, match="CountingLearner cannot learn on 1 ranks"):
        Ranks().check(CountingLearner(an_agent()))
    SingleProcess().check(CountingLearner(an_agent()))
