"""Rollout: what was played is cut into one session per game."""

from __future__ import annotations

import numpy as np

from tests.helpers.counting import clock
from tests.helpers.people import LENGTH, a_player, a_spec


def test_a_rollout_is_one_session_per_game_numbered_in_order(database):
    player, uploader = a_player(database, num_envs=3)
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
    assert uploader.worker.num_envs == 3


def test_two_rollouts_share_no_memory(database):
    player, _ = a_player(database)
    earlier = player.play()
    kept = [array.copy() for session in earlier.sessions("", 0) for array in session.arrays.values()]
    player.play()
    again = [array for session in earlier.sessions("", 0) for array in session.arrays.values()]
    for before, after in zip(kept, again, strict=True):
        np.testing.assert_array_equal(before, after)


def test_sessions_are_cut_without_a_copy_and_fit_the_spec(database):
    player, _ = a_player(database, num_envs=2, nested=True)
    rollout, spec = player.play(), a_spec(nested=True)
    for session in rollout.sessions("someone", 0):
        assert spec.difference({name: (leaf.shape, leaf.dtype) for name, leaf in session.arrays.items()}) == ""
        assert all(leaf.flags.c_contiguous for leaf in session.arrays.values())
        assert np.shares_memory(session.arrays["observations.clock"], rollout.observations["clock"])
        assert np.shares_memory(session.arrays["extras.saw"], rollout.extras["saw"])


def test_marks_join_the_metadata(database):
    player, _ = a_player(database, num_envs=1)
    (session,) = player.play().sessions("someone", 0, human="1")
    assert session.human
    (session,) = player.play().sessions("someone", 0)
    assert not session.human
