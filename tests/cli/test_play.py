"""Every option of `play` reaches the player."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.command_line import Tinyverse, created, info, swap_with_spy
from tinyverse.envs import process_pool
from tinyverse.player import loop


def test_play_s_looks_for_weights_that_often(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    created(run)
    calls = swap_with_spy(monkeypatch, loop, "play", 0)
    run("play", "-s", 5)
    run("play")
    assert [named["sync_every"] for _, named in calls] == [5, 1]


def test_play_steps_games_in_processes_of_their_own(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    created(run)
    calls: list[Any] = []

    real = process_pool.ProcessPool

    def pool(make: Any, num_envs: int, workers: int, spaces: Any, **named: Any) -> Any:
        """The first in processes, each of which imports torch; the others here."""
        calls.append((num_envs, workers, named["step_timeout"], named["memory"]))
        return real(make, num_envs, workers, spaces, **named) if len(calls) == 1 else make(num_envs)

    monkeypatch.setattr(process_pool, "ProcessPool", pool)
    run("play", "-n", 2, "-b", 3, "--workers", 2, "-q")
    assert info(run)["inserted"] == 6
    run("play", "-n", 1, "-b", 3, "--workers", 2, "--cores", 2, "-q")
    run("play", "-n", 1, "--step-timeout", 20, "--worker-memory", 4000, "-q")
    assert calls == [(3, 2, None, None), (2, 1, None, None), (1, 1, None, None), (32, 1, 20.0, 4000 << 20)]


@pytest.mark.parametrize(("option", "value"), [("--workers", -1), ("--step-timeout", 0), ("--worker-memory", 0)])
def test_limits_of_workers_are_positive(tinyverse: Tinyverse, option: str, value: int) -> None:
    said = tinyverse("catch", "play", option, value)
    assert said.code == 2 and option[2:].replace("-", " ") in said.err
