"""PlayerQuota: one player cannot crowd out the others, and nobody waits for ever."""

from __future__ import annotations

import pytest

from tests.helpers.people import a_trainer
from tests.trainer.test_trainer import push, some_sessions
from tinyverse.core.errors import SettingsError
from tinyverse.database.memory import MemoryDatabase
from tinyverse.trainer.feeder import PlayerQuota


def admitted(quota, *players):
    return [quota.admit(player) for player in players]


def test_who_is_alone_is_free():
    assert all(admitted(PlayerQuota(0.5, window=10), *"a" * 50))


def test_of_a_flood_no_more_is_kept_than_the_share():
    quota, kept = PlayerQuota(0.5, window=100), {"a": 0, "b": 0, "c": 0}
    for number in range(3000):
        for player in "a" * 30 + "bc":
            kept[player] += quota.admit(player) and number >= 100
    assert kept["b"] == kept["c"] == 2900
    assert kept["a"] / sum(kept.values()) == pytest.approx(0.5, abs=0.03)


def test_even_players_are_hardly_touched():
    quota = PlayerQuota(0.4, window=200)
    assert all(quota.admit(player) for _ in range(500) for player in "abcd")


def test_who_is_alone_again_is_free_again():
    quota = PlayerQuota(0.5, window=20)
    admitted(quota, *"ab" * 20)
    assert not all(admitted(quota, *"a" * 20))
    assert all(admitted(quota, *"a" * 20))


def test_without_a_limit_nothing_is_counted():
    quota = PlayerQuota()
    assert all(admitted(quota, *"ab" * 10)) and not quota._came


@pytest.mark.parametrize("most", [0, -1, 1.1, float("nan")])
def test_quotas_that_make_no_sense(most):
    with pytest.raises(SettingsError, match="player_share"):
        PlayerQuota(most)


def test_what_is_refused_is_counted_and_nobody_waits_for_it():
    database = MemoryDatabase()
    trainer = a_trainer(database, player_share=0.5)
    trainer.join()
    push(database, some_sessions(2, player="quiet"))
    push(database, some_sessions(10, player="loud"))
    trainer.feed()
    assert len(trainer.replay) == 4 and trainer.feeder.rejected == {"its player sends more than its share": 8}
    while trainer.step():
        pass
    trainer.publisher.report(trainer.update)
    assert database.state().deficit == 0
