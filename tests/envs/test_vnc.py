"""VNC: the clock waits for nobody, chords are what is held, and a real browser game is played and learned."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyverse.cli.check import check
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.core.errors import ExperimentError
from tinyverse.envs import vnc
from tinyverse.experiment import loader
from tinyverse.player.evaluator import evaluate

pytest.importorskip("vncdotool")
NEEDED = ("Xtigervnc", "chromium")
browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"{' or '.join(NEEDED)} is not installed"),
]
RANDOM_RETURN = -4.0  # of ten blocks, three are caught by chance


def blank(**options: Any) -> vnc.VncEnv:
    return vnc.VncEnv("nowhere", **{"chords": ["", "left up"], "score": lambda screen: 0.0, **options})


class Time:
    """A clock that only sleeping and `now +=` move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_ticks_lie_on_a_grid_and_what_comes_late_has_missed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = Time(monkeypatch)
    clock = vnc.Clock(20.0)
    for late, tick, missed in [
        (0.0, 100.05, 0),
        (0.049, 100.1, 0),
        (0.06, 100.16, 0),
        (0.03, 100.2, 0),
        (0.32, 100.52, 5),
    ]:
        now.now += late
        clock.wait()
        assert now.now == pytest.approx(tick) and clock.missed == missed


@pytest.mark.parametrize(
    ("chord", "words"),
    [("", ()), ("left up", ("left", "up")), ("a", ("a",)), ("@120,80 button1", ("@120,80", "button1"))],
)
def test_chords(chord: str, words: tuple[str, ...]) -> None:
    assert vnc._chord(chord) == words


@pytest.mark.parametrize("chord", ["leftt", "left button4", "@12", "@x,1", "@1,2,3"])
def test_a_word_that_is_no_key_is_refused(chord: str) -> None:
    with pytest.raises(ExperimentError, match=r"is no key, button or position\. Keys are"):
        blank(chords=[chord])


def test_building_connects_to_nothing_and_a_missing_server_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = blank()
    env._where = f"127.0.0.1::{port}"
    assert env.observation_space.shape == (84, 84) and env.action_space.n == 2
    with pytest.raises(ExperimentError, match=rf"no VNC server can be used at 127.0.0.1::{port}.*give another address"):
        env.reset()


def test_a_program_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExperimentError, match="Xtigervnc is not installed; on Debian: apt-get install tigervnc"):
        vnc.Desktop(["chromium"], 160, 160)


class TestTheGame:
    """Chromium plays examples/falling.html."""

    pytestmark = browser

    def test_chance_scores_and_the_game_goes_on_without_us(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        experiment = loader.build(loader.load_module("vnc"), {"num_envs": 2})
        pool = experiment.pool(2)
        try:
            chance, returns, total = np.random.default_rng(1), [], np.zeros(2)
            began, before = time.monotonic(), pool.reset(0).copy()
            actions = chance.integers(3, size=2)
            while len(returns) < 4 and time.monotonic() - began < 60:
                actions = np.where(chance.random(2) < 0.15, chance.integers(3, size=2), actions)
                step = pool.step(actions)
                total += step.rewards
                assert (step.rewards == step.rewards.round()).all()  # several blocks where a busy machine was late
                returns += total[step.terminated].tolist()
                total[step.terminated] = 0.0
            assert len(returns) >= 4 and min(returns) >= -10 and max(returns) < 10 and len(set(returns)) > 1
            assert step.observations.max() > 200 and not np.array_equal(before, step.observations)
            missed = pool.clock.missed
            time.sleep(1.0)
            step = pool.step(actions)
            assert pool.clock.missed - missed >= 18
        finally:
            pool.close()

    def test_keys_move_the_paddle(self) -> None:
        env = loader.build(loader.load_module("vnc"), {}).env()
        try:
            env.reset()
            places = []
            for action in (1, 2, 1):
                for _ in range(20):
                    observation = env.step(action)[0]
                places.append(int(np.argmax(observation[-1] > 60)))
            assert places == [0, 15, 0]  # of 20 cells, the paddle takes five
        finally:
            env.close()

    def test_nothing_is_left_when_a_desktop_is_closed(self) -> None:
        desktop = loader.load_module("vnc").start()
        assert Path(desktop.address).exists()
        desktop.close()
        assert not Path(desktop.folder).exists()

    def test_a_screen_that_dies_is_replaced(self) -> None:
        pool = loader.build(loader.load_module("vnc"), {}).pool(1, restart=True)
        try:
            pool.reset(0)
            pool._pool._envs[0]._connection._desktop.close()
            steps = [pool.step(np.zeros(1, int)) for _ in range(10)]
            ends = [bool(step.truncated[0]) for step in steps]
            assert pool.faults == 1 and "has gone" in pool.fault and ends.count(True) == 1
            assert steps[-1].observations.max() > 200
        finally:
            pool.close()

    def test_check_passes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "an update" in dict(check.callback(RunContext("vnc", seed=1)))

    @pytest.mark.timeout(400)
    def test_it_is_learned_in_four_minutes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        context = RunContext("vnc", seed=1, quiet=True)
        trainer = local.callback(context, TrainOptions(minutes=4))
        evaluation = evaluate(
            loader.build(context.module, context.resolved({})), trainer.agent, episodes=5, greedy=True
        )
        assert trainer.row()["play/return"] > 0 > RANDOM_RETURN
        assert evaluation.mean > 0 > RANDOM_RETURN, evaluation
