"""PettingZoo: several agents in one world, each an environment; the counting ones pass through test_pool's sources too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from tests.helpers.counting import CountingAgent, clock
from tests.helpers.sources import World
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.envs import pool_of
from tinyverse.player.player import Player


def test_as_many_worlds_as_fill_the_batch() -> None:
    assert [pool_of(World, num_envs).num_envs for num_envs in (1, 5, 6, 11)] == [5, 5, 10, 15]


def test_sessions_of_agents_hold_whole_episodes_and_rows_that_do_not_count() -> None:
    player = Player(CountingAgent(), pool_of(World, 5), 7, seed=1)
    waited = 0
    sessions: list[list[Any]] = [[] for _ in range(5)]
    for batch in range(40):
        for game, session in enumerate(player.play().sessions("me", 5 * batch)):
            dead = ~session.valid
            assert not (session.terminated | session.truncated | (session.rewards != 0))[dead].any()
            waited += int((dead[1:] & dead[:-1]).sum())
            sessions[game].append(session)
    assert waited > 50
    for played in sessions:
        clocks = np.concatenate([clock(s.observations)[:-1] for s in played])
        alive = np.concatenate([s.valid for s in played])
        episodes = [e for s in played for e in s.episodes]
        lengths = [int((clocks[alive, 0] == number).sum()) for number in range(len(episodes))]
        assert [length for _, length in episodes] == lengths  # each step once, none after the end
        np.testing.assert_array_equal(np.concatenate([s.extras["count"] for s in played])[alive], clocks[alive, 1])


def test_agents_with_different_spaces_are_refused() -> None:
    class Uneven(World):
        def action_space(self, agent: str) -> Any:
            return spaces.Discrete(3 if agent == "east" else 4)

    with pytest.raises(ExperimentError, match=r"action space of agent north is Discrete\(4\), that of east.*supersuit"):
        pool_of(Uneven, 5)


def test_a_reset_without_an_agent_is_refused() -> None:
    class Late(World):
        def reset(self, **options: Any) -> Any:
            observations, infos = super().reset(**options)
            return {name: seen for name, seen in observations.items() if name != "south"}, infos

    with pytest.raises(SpecError, match=r"no observation of \['south'\]"):
        pool_of(Late, 5).reset(0)


def test_a_real_world() -> None:
    rps = pytest.importorskip("pettingzoo.classic.rps_v2")
    pool = pool_of(rps.parallel_env, 4)
    pool.reset(0)
    step = pool.step(np.array([0, 2, 1, 1]))
    assert pool.num_envs == 4 and step.rewards.tolist() == [1, -1, 0, 0]
