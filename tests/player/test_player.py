"""Player: one pool or two taken in turn, with the same environments for the same seed."""

from __future__ import annotations

import numpy as np

from tests.helpers.counting import CountingAgent, CountingEnv, clock
from tests.helpers.people import (
    LENGTH,
    a_player,
)
from tinyverse.envs.pool import SerialPool
from tinyverse.player.player import SEEDS_APART, Player


def test_two_pools_taken_in_turn_play_what_each_would_play_alone():
    both = Player(CountingAgent(), [SerialPool(CountingEnv, 2), SerialPool(CountingEnv, 3)], LENGTH, seed=5)
    alone = [
        Player(CountingAgent(), SerialPool(CountingEnv, num_envs), LENGTH, seed=seed)
        for num_envs, seed in ((2, 5), (3, 5 + SEEDS_APART))
    ]
    assert both.num_envs == 5
    for _ in range(20):
        rollout, parts = both.play(), [player.play() for player in alone]
        for name in ("observations", "actions", "rewards", "terminated", "truncated", "valid"):
            got = getattr(rollout, name)
            np.testing.assert_array_equal(got, np.concatenate([getattr(part, name) for part in parts], 1))
        np.testing.assert_array_equal(rollout.initial_state, np.concatenate([part.initial_state for part in parts]))
        np.testing.assert_array_equal(rollout.extras["saw"], clock(rollout.observations[:-1]))
        assert rollout.episodes == parts[0].episodes + parts[1].episodes
    assert any(rollout.episodes) or not rollout.valid.all()


def test_one_pool_is_stepped_while_the_agent_acts_in_the_other():
    """What is sent to a pool is not received before the agent has acted in the other one."""
    log = []

    class Logged(SerialPool):
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


def test_one_seed_gives_the_same_games(database):
    same, again, other = (a_player(database, seed=seed)[0].play() for seed in (3, 3, 4))
    np.testing.assert_array_equal(same.observations, again.observations)
    assert (same.observations != other.observations).any()
