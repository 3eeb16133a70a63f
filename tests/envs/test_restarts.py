"""Environments that fail: closed, built anew, their episode truncated; the others go on, and the whole pipe stays true."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from tests.helpers.counting import CountingAgent, CountingEnv, clock, counting_vector
from tests.helpers.faulty import FaultyEnv, all_faulty, one_faulty
from tests.helpers.sources import World
from tests.helpers.waiting import until
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.run_config import run_config
from tinyverse.database.base import new_worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.envs import SerialPool, pool_of
from tinyverse.envs.restarts import RestartPolicy
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader

WAYS = {
    "raises": "KeyError: 'mine'",
    "reset raises": "KeyError: 'mine'",
    "nan": "not a number",
    "infinite": "not a number",
    "shape": r"float32\[2\]",
    "dtype": r"complex128\[3\]",
    "nan reward": "reward is not a number",
    "huge reward": "reward is not a number",
    "rewards": r"reward is float64\[2\]",
    "forgets": r"step\(\) returned 2 values, wanted observation, reward",
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyverse.envs.restarts.FIRST_DELAY", 0.01)


def rows(pool: Any, steps: int) -> tuple[np.ndarray, ...]:
    """Observations [T+1, B, 3], rewards and flags [T, B] of so many steps; and which rows count."""
    seen, rest = [clock(pool.reset(3)).copy()], []
    for _ in range(steps):
        step = pool.step(np.zeros(pool.num_envs, int))
        seen.append(clock(step.observations).copy())
        rest.append([np.array(part) for part in step[1:4]])
    rewards, terminated, truncated = (np.stack(column) for column in zip(*rest, strict=True))
    ended = terminated | truncated
    valid = np.concatenate([np.ones((1, pool.num_envs), bool), ~ended[:-1]])
    return np.stack(seen), rewards, terminated, truncated, valid


def check_others(mended: Any, sound: Any, first: int) -> None:
    """The environments from `first` on are those of a pool in which nothing failed."""
    for got, wanted in zip(mended, rows(sound, 60)[:4], strict=True):
        np.testing.assert_array_equal(got[:, first:], wanted[:, first:])


@pytest.mark.parametrize("how", WAYS)
def test_a_game_that_fails_is_built_anew_and_the_others_never_notice(how: str, caplog: Any) -> None:
    pool = one_faulty(how, 10, 3)
    faulty = pool._envs[0]
    with caplog.at_level(logging.WARNING):
        seen, rewards, terminated, truncated, valid = rows(pool, 60)
    check_others((seen, rewards, terminated, truncated), SerialPool(FaultyEnv, 3), 1)
    assert pool.faults == 1 and faulty.closed
    assert re.search(WAYS[how], pool.fault) and re.search(WAYS[how], caplog.text)
    at = int(np.flatnonzero(seen[:-1, 0, 2] != seen[1:, 0, 2])[0])  # the row that brings the new environment's first
    assert truncated[at - 1, 0] and not valid[at, 0]
    assert (seen[at, 0] == seen[at - 1, 0]).all()  # what it showed last, again
    assert (seen[at + 1, 0, :2] == 0).all() and not (terminated[at, 0] or truncated[at, 0]) and rewards[at, 0] == 0
    assert np.isfinite(seen).all() and np.isfinite(rewards).all()


def test_without_mending_it_raises_at_once() -> None:
    for how, words in WAYS.items():
        pool = SerialPool(lambda how=how: FaultyEnv(how), 2)  # type: ignore[misc]
        with pytest.raises((KeyError, SpecError, ValueError), match=words.removeprefix("KeyError: ")):
            rows(pool, 60)


def test_while_a_game_waits_its_rows_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestartPolicy, "delay", lambda self, part: 1.0)
    pool = one_faulty("raises", 10, 2)
    seen, rewards, _, truncated, valid = rows(pool, 40)
    end = int(np.flatnonzero(seen[:-1, 0, 2] * truncated[:, 0] * (rewards[:, 0] == 0) * valid[:, 0])[-1])
    assert truncated[end:, 0].all() and not valid[end + 1 :, 0].any() and (rewards[end:, 0] == 0).all()
    assert (seen[end:, 0] == seen[end, 0]).all()
    assert valid[end:, 1].any()


def test_rows_that_do_not_count_have_no_flags_and_no_episodes_in_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestartPolicy, "delay", lambda self, part: 1.0)
    player = Player(CountingAgent(), one_faulty("raises", 10, 2), 40)
    rollout = player.play()
    dead = ~rollout.valid
    assert dead[-5:, 0].all()
    assert not (rollout.terminated | rollout.truncated | (rollout.rewards != 0))[dead].any()
    ends = (rollout.terminated | rollout.truncated).sum(0)
    assert [len(episodes) for episodes in rollout.episodes] == ends.tolist()
    assert all(length > 0 for episodes in rollout.episodes for _, length in episodes)


def test_when_every_game_has_failed_three_times_running_the_error_comes_out() -> None:
    pool = all_faulty("raises", 2, 2)
    with pytest.raises(KeyError, match="mine"):
        rows(pool, 200)
    assert pool.faults >= 5


def test_a_game_that_cannot_begin_raises_what_it_raised() -> None:
    with pytest.raises(KeyError, match="mine"):
        all_faulty("reset raises", 0, 2).reset(0)


def test_an_episodes_own_end_or_a_thousand_steps_make_good_an_earlier_failure() -> None:
    policy, error = RestartPolicy(1, "environment"), KeyError("mine")
    for _ in range(10):
        policy.failed(0, error)
        policy.recovered(0)
    for _ in range(10):
        policy.steps += 1000
        policy.failed(0, error)
        policy.restarted(0)
    policy.steps += 1
    policy.failed(0, error)
    policy.steps += 1
    with pytest.raises(KeyError):
        policy.failed(0, error)


def test_pauses_grow_and_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyverse.envs.restarts.FIRST_DELAY", 0.5)
    policy = RestartPolicy(2, "environment")
    pauses = []
    for _ in range(10):
        policy.failed(0, KeyError("mine"))
        pauses.append(policy.delay(0))
    assert pauses == pytest.approx([0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30], abs=0.1)
    assert policy.delay(1) == 0


def test_another_kind_of_game_does_not_take_its_place() -> None:
    envs = [
        FaultyEnv("raises", 3),
        FaultyEnv(),
        CountingEnv(nested=True),
        CountingEnv(nested=True),
        CountingEnv(nested=True),
    ]
    pool = SerialPool(lambda: envs.pop(0), 2, restart=True)
    rows(pool, 60)
    assert pool.faults == 3 or "one kind of environment" in pool.fault


def test_a_vector_environment_that_fails_is_built_anew() -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(SyncVectorEnv([lambda: FaultyEnv("" if made else "raises", 10), FaultyEnv]))
        return made[-1]

    pool = pool_of(make, 2, restart=True)
    seen, _, _, truncated, _ = rows(pool, 40)
    assert len(made) == 2 and pool.faults == 1 and "mine" in pool.fault
    at = int(np.flatnonzero(seen[:-1, 0, 2] != seen[1:, 0, 2])[0])
    assert truncated[at - 1].all() and not truncated[at].any() and (seen[at + 1, :, :2] == 0).all()
    with pytest.raises(KeyError, match="mine"):
        rows(pool_of(lambda: SyncVectorEnv([lambda: FaultyEnv("raises", 10)]), 1), 40)


class FaultyWorld(World):
    """Agents of whom the one in the east is `how`; they show floats, which can be NaN."""

    def __init__(self, how: str = "", when: int = 10) -> None:
        self.envs = {agent: FaultyEnv(how if agent == "east" else "", when) for agent in self.possible_agents}
        self.agents, self.closed = [], False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("how", WAYS)
def test_a_world_of_agents_that_fails_is_built_anew_and_the_others_never_notice(how: str, caplog: Any) -> None:
    faults = [how]
    pool = pool_of(lambda: FaultyWorld(faults.pop() if faults else "", 10), 10, restart=True)
    faulty, here = pool._envs[0].env, slice(0, 5)
    with caplog.at_level(logging.WARNING):
        seen, rewards, terminated, truncated, valid = rows(pool, 60)
    check_others((seen, rewards, terminated, truncated), pool_of(FaultyWorld, 10), 5)
    assert pool.faults == 1 and faulty.closed
    words = "unpack|out of range|sizes" if how == "forgets" else WAYS[how]
    assert re.search(words, pool.fault) and re.search(words, caplog.text)
    at = int(np.flatnonzero((seen[:-1, here, 2] != seen[1:, here, 2]).all(1))[0])  # brings the new world's first rows
    assert truncated[at - 1, here].all() and not terminated[at - 1, here].any() and not valid[at, here].any()
    assert (seen[at, here] == seen[at - 1, here]).all()  # what they showed last, again
    assert (
        (seen[at + 1, here, :2] == 0).all()
        and not truncated[at, here].any()
        and not rewards[at - 1 : at + 1, here].any()
    )
    assert np.isfinite(seen).all() and np.isfinite(rewards).all()


def test_while_a_world_waits_its_agents_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestartPolicy, "delay", lambda self, part: 1.0)
    faults = ["raises"]
    seen, rewards, _, truncated, valid = rows(
        pool_of(lambda: FaultyWorld(faults.pop() if faults else "", 10), 10, restart=True), 60
    )
    assert truncated[-20:, :5].all() and not valid[-20:, :5].any() and not rewards[-20:, :5].any()
    assert (seen[-20:, :5] == seen[-1, :5]).all() and valid[-20:, 5:].any()


def test_agents_without_mending_raise_and_so_do_worlds_that_always_fail() -> None:
    for how, words in WAYS.items():
        words = "unpack|out of range|sizes" if how == "forgets" else words.removeprefix("KeyError: ")
        with pytest.raises((KeyError, SpecError, ValueError, IndexError), match=words):
            rows(pool_of(lambda how=how: FaultyWorld(how), 5), 60)  # type: ignore[misc]
    pool = pool_of(lambda: FaultyWorld("raises", 2), 10, restart=True)
    with pytest.raises(KeyError, match="mine"):
        rows(pool, 200)
    assert pool.faults >= 5
    with pytest.raises(KeyError, match="mine"):
        pool_of(lambda: FaultyWorld("reset raises", 0), 10, restart=True).reset(0)


def test_a_pool_of_ones_own_that_fails_is_built_anew() -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(SerialPool(lambda: FaultyEnv("" if len(made) % 2 else "raises", 10), 2))
        return made[-1]

    pool = pool_of(make, 2, restart=True)
    seen, rewards, terminated, truncated, valid = rows(pool, 15)
    at = int(np.flatnonzero((seen[:-1, :, 2] != seen[1:, :, 2]).all(1))[0])
    assert len(made) == 2 and pool.faults == 1 and "mine" in pool.fault and made[0]._envs[0].closed
    assert truncated[at - 1].all() and not (valid[at] | terminated[at] | truncated[at]).any() and not rewards[at].any()


def test_a_pool_of_ones_own_that_always_fails_raises() -> None:
    with pytest.raises(KeyError, match="mine"):
        rows(pool_of(lambda: SerialPool(lambda: FaultyEnv("raises", 2), 2), 2, restart=True), 60)
    with pytest.raises(KeyError, match="mine"):
        pool_of(lambda: SerialPool(lambda: FaultyEnv("reset raises", 0), 2), 2, restart=True).reset(0)


def test_a_player_says_what_failed_and_goes_on(caplog: Any) -> None:
    from tests.helpers.people import HOLDER, LENGTH, a_spec, publish, sessions_of

    database = MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    database.acquire_lease(HOLDER)
    publish(database, 0)
    faults = ["raises"]

    class Whole(FaultyEnv):
        def __init__(self) -> None:
            super().__init__(faults.pop() if faults else "", 10)
            self.observation_space = self._clock

        def _observation(self) -> Any:
            return super()._observation().astype(np.int32)

    player = Player(CountingAgent(), SerialPool(Whole, 2, restart=True), LENGTH)
    uploader = Uploader(database, new_worker("play", num_envs=2), CountingAgent())
    uploader.start()
    with caplog.at_level(logging.CRITICAL):
        assert play(player, uploader, batches=12) == 12
    until(lambda: len(sessions_of(database)) == 24)
    (worker,) = until(lambda: [w for w in database.workers() if w.faults])
    assert worker.faults == 1 and "KeyError: 'mine'" in worker.error and "Traceback" in worker.error
    uploader.close()
    truncated = [session for session in sessions_of(database) if session.truncated.any()]
    assert truncated


def test_a_vector_environment_given_as_it_is_cannot_be_built_anew() -> None:
    assert pool_of(counting_vector(2), 2, restart=True).faults == 0
    with pytest.raises(ExperimentError):
        pool_of(3, 2, restart=True)
