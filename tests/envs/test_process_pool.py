"""Worker processes: what they step is what one process steps; what dies, hangs or grows is replaced."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.envs.test_restarts import rows
from tests.helpers.counting import CountingEnv
from tests.helpers.faulty import FaultyEnv, all_faulty, counting, one_faulty_process
from tests.helpers.waiting import until
from tinyverse.core.errors import ExperimentError
from tinyverse.envs import Pool, SerialPool
from tinyverse.envs.process_pool import ProcessPool

SPACES = FaultyEnv().observation_space, FaultyEnv().action_space


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyverse.envs.restarts.FIRST_DELAY", 0.01)


def a_pool(make: Any, num_envs: int = 4, workers: int = 2, **options: Any) -> ProcessPool:
    return ProcessPool(make, num_envs, workers, SPACES, **options)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def play_until_back(pool: Pool, steps: int = 4000) -> tuple[np.ndarray, ...]:
    """Steps while a worker is replaced, which takes as long as a process takes to start."""
    seen, rest = [pool.reset(3).copy()], []
    for _ in range(steps):
        step = pool.step(np.zeros(pool.num_envs, int))
        seen.append(step.observations.copy())
        rest.append([np.array(part) for part in step[1:4]])
        if len(rest) > 60 and pool.faults and not any(pool._needs_reset):  # type: ignore[attr-defined]
            break
        time.sleep(0.002)
    rewards, terminated, truncated = (np.stack(column) for column in zip(*rest, strict=True))
    return np.stack(seen), rewards, terminated, truncated


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ("dies", {}, "ended with exit code 3"),
        ("hangs", {"step_timeout": 0.5}, "has not answered in time"),
        ("grows", {"memory": 300 << 20}, "it has grown to"),
    ],
)
def test_a_worker_that_is_lost_is_replaced(
    how: str, options: Any, words: str, tmp_path: Path, monkeypatch: Any
) -> None:
    make = functools.partial(one_faulty_process, str(tmp_path / "mark"), how, 10)
    pool = a_pool(make, **options)
    pids = [worker._process.pid for worker in pool._workers]
    seen, rewards, terminated, truncated = play_until_back(pool, 4000)
    after = [worker._process.pid for worker in pool._workers]
    assert pool.faults == 1 and words in pool.fault
    if how == "hangs":
        assert "faulty.py" in pool.fault and "step" in pool.fault, "where it hangs"
    lost = pids[0] == after[0]
    assert sum(a != b for a, b in zip(pids, after, strict=True)) == 1
    its = slice(2 * lost, 2 * lost + 2)
    others = slice(2 - 2 * lost, 4 - 2 * lost)
    ends = np.flatnonzero(truncated[:, its].all(1) & (rewards[:, its] == 0).all(1))
    first, last = ends[0], ends[-1]
    assert (seen[first : last + 2, its] == seen[first, its]).all()  # what they showed last
    assert (seen[last + 2, its, :2] == 0).all() and not (terminated | truncated)[last + 1, its].any()
    assert (np.diff(seen[:, others, 2], axis=0) == 0).all(), "the other worker's environments went on"
    assert not (truncated[1:, others] & truncated[:-1, others]).any()
    assert all(not is_gone(pid) for pid in after)
    pool.close()
    assert all(is_gone(pid) for pid in {*pids, *after})


def test_a_game_that_fails_is_mended_where_it_is(tmp_path: Path) -> None:
    pool = a_pool(functools.partial(one_faulty_process, str(tmp_path / "mark"), "raises", 10))
    pids = [worker._process.pid for worker in pool._workers]
    rows(pool, 60)
    assert pool.faults == 1 and "KeyError: 'mine'" in pool.fault
    assert pids == [worker._process.pid for worker in pool._workers]
    pool.close()


def test_games_that_always_fail_end_the_pool_with_their_traceback() -> None:
    pool = a_pool(functools.partial(all_faulty, "raises", 2), num_envs=2)
    with pytest.raises(ExperimentError, match=r"(?s)the worker of environment .*faulty.py.*KeyError: 'mine'"):
        rows(pool, 4000)
    pool.close()


def not_to_be_built(num_envs: int) -> Pool:
    raise KeyError("mine")


def test_games_that_cannot_be_built_raise_at_once() -> None:
    with pytest.raises(ExperimentError, match=r"(?s)not_to_be_built.*KeyError: 'mine'"):
        a_pool(not_to_be_built)
    with pytest.raises(ExperimentError, match="must be a module's own function"):
        a_pool(lambda num_envs: SerialPool(CountingEnv, num_envs))


def one_too_many(num_envs: int) -> Pool:
    return counting(num_envs + 1)


def test_a_pool_of_another_size_is_refused() -> None:
    with pytest.raises(ExperimentError, match="a worker has 2 environments, its pool has 3"):
        a_pool(one_too_many)


def test_a_running_pool_has_no_files_that_a_kill_could_leave_behind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pool = a_pool(functools.partial(all_faulty, "", 0))
    pool.reset(0)
    assert list(tmp_path.iterdir()) == []
    pool.close()


@pytest.mark.faults
def test_a_killed_worker_costs_its_games_an_episode() -> None:
    env = CountingEnv()
    pool = ProcessPool(counting, 4, 2, (env.observation_space, env.action_space))
    pool.reset(0)
    os.kill(pool._workers[1]._process.pid, signal.SIGKILL)
    step = until(lambda: (s := pool.step(np.zeros(4, int))).truncated[2:].all() and pool.faults and s)
    assert "killed by signal 9" in pool.fault and not (step.rewards[2:]).any()
    until(lambda: not pool.step(np.zeros(4, int)).truncated[2:].all())
    pool.close()
