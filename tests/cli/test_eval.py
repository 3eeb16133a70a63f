"""Which weights `eval` plays, how often, and where the best are kept."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.command_line import CHECKOUT, Tinyverse, created, info, one_sentence, swap_with_spy
from tinyverse.cli import eval as evaluating
from tinyverse.cli import weights as finding
from tinyverse.core.weights import WeightsFile
from tinyverse.player import evaluator
from tinyverse.player.evaluator import Evaluation
from tinyverse.trainer.run_folder import RunFolder


@pytest.fixture
def trained(tinyverse: Tinyverse) -> Path:
    """The checkpoint of a run of `tabular`, which needs no torch to play."""
    assert tinyverse("tabular", "local", "-n", 3, "-q").code == 0
    return sorted(Path("runs/tabular/checkpoints").iterdir())[-1]


def test_eval_plays_n_games(tinyverse: Tinyverse, trained: Path) -> None:
    said = tinyverse("tabular", "eval", "-n", 3, "-b", 2, "--json", "--no-video")
    found = json.loads(said.out)
    assert said.code == 0 and len(found["returns"]) == len(found["lengths"]) == 3 and found["version"] == 3
    assert found["video"] is None and not Path("records").exists()
    assert tinyverse("tabular", "eval", "--no-video").out.startswith("tabular: mean return ")


def test_eval_films_unless_told_not_to(tinyverse: Tinyverse) -> None:
    tinyverse("catch", "local", "-n", 1, "-q", "--name", "film")
    said = tinyverse("catch", "eval", "--name", "film")
    assert said.code == 0 and "video: records/film-v" in said.out
    assert [path.suffix for path in Path("records").iterdir()] == [".webm"]


@pytest.mark.xdist_group("joblib")  # whose processes import torch once, and are kept
def test_eval_in_processes(tinyverse: Tinyverse, trained: Path) -> None:
    said = tinyverse("tabular", "eval", "-n", 3, "-j", 2, "--json", "--no-video")
    assert said.code == 0 and len(json.loads(said.out)["returns"]) == 3


def test_eval_of_a_version_or_a_file(run: Tinyverse, tinyverse: Tinyverse) -> None:
    newest = created(run)["version"]
    assert json.loads(run("eval", "--json", "--no-video").out)["version"] == newest
    assert json.loads(run("eval", "--json", "--no-video", "--weights", 0).out)["version"] == 0
    run("play", "-n", 1, "-b", 2, "-q")
    run("train", "-n", 1, "-b", 2, "-q")
    file = sorted(Path(f"runs/{run.name}/checkpoints").iterdir())[-1]  # type: ignore[attr-defined]
    kept = torch.load(file, weights_only=True)["version"]
    assert json.loads(run("eval", "--json", "--no-video", "--weights", file).out)["version"] == kept
    name = ["--name", run.name]  # type: ignore[attr-defined]
    one_sentence(tinyverse("catch", "eval", *name, "--weights", 77), 2, "has no version 77; the newest is")
    one_sentence(tinyverse("catch", "eval", *name, "--weights", "x.pt"), 2, "--weights x.pt is neither a file here nor")


def test_options_that_reach_the_evaluator(tinyverse: Tinyverse, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = swap_with_spy(monkeypatch, evaluator, "evaluate", Evaluation([1.0], [5]))
    tinyverse("tabular", "eval", "--greedy", "--render", "-b", 3, "-n", 4, "--seed", 9)
    tinyverse("tabular", "eval")
    named = calls[0][1]
    assert (named["greedy"], named["render"], named["at_once"], named["episodes"], named["seed"]) == (
        True,
        True,
        3,
        4,
        9,
    )
    assert named["video"] is None
    named = calls[1][1]
    assert (named["greedy"], named["render"], named["at_once"], named["episodes"]) == (None, False, 1, 1)
    assert named["video"] == Path("records/tabular-v3.webm")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_a_film_needs_no_screen(tinyverse, trained, monkeypatch):
    pytest.importorskip("pygame")
    drawn_by = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "")  # is put back at the end
    monkeypatch.delenv("SDL_VIDEODRIVER")

    def evaluate(*_, **__):
        drawn_by.append(os.environ.get("SDL_VIDEODRIVER"))
        return Evaluation([1.0], [1])

    monkeypatch.setattr(evaluating, "_evaluate", evaluate)
    for option in ("--render", "--greedy"):
        assert tinyverse("tabular", "eval", option).code == 0
    assert drawn_by == [None, "dummy"]
    words = [sys.executable, "-c", "import pygame; pygame.display.init(); pygame.Surface((9, 9)).fill((1, 2, 3))"]
    assert subprocess.run(words, check=True, capture_output=True, timeout=60).stderr == b""


def test_what_a_single_evaluation_found_is_kept_for_the_report(tinyverse, trained, monkeypatch):
    monkeypatch.setattr(
        evaluating, "_evaluate", lambda _, found, *__, **___: Evaluation([1.0, 3.0], [5, 7], found.version)
    )
    for words in ([], ["--weights", 3], ["--weights", trained]):
        assert tinyverse("tabular", "eval", "-n", 2, "--no-video", *words).code == 0
    folder = RunFolder("runs/tabular")
    kept = [(row["version"], row["eval/return"], row["eval/episodes"]) for row in folder.rows("evaluations")]
    assert kept == [(3, 2.0, 2), (3, 2.0, 2)]  # a file's may be another run's
    assert not any("eval/return" in row for row in folder.rows())


def test_eval_every_goes_on_until_it_is_stopped(
    tinyverse: Tinyverse, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([5, None, 6])

    def weights(*_: Any, **__: Any) -> Any:
        version = next(versions, 0)
        if version == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return WeightsFile({}, version) if version else None

    monkeypatch.setattr(evaluating, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(evaluating, "weights_for", weights)
    monkeypatch.setattr(evaluating, "_evaluate", lambda _, found, *__, **___: Evaluation([1.0], [5], found.version))
    said = tinyverse("tabular", "eval", "--every", "--json")
    assert said.code == 0 and [json.loads(line)["version"] for line in said.out.splitlines()] == [5, 6]


def test_the_best_is_kept_across_evaluations(
    run: Tinyverse, tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(run)
    run("play", "-n", 3, "-b", 2, "-q")
    scores, versions = iter([1.0, 3.0, 2.0]), []

    def play(_: Any, found: WeightsFile, *__: Any, **___: Any) -> Evaluation:
        score = next(scores)
        versions.append(found.version)
        if score == 2.0:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            run("train", "-n", 1, "-b", 2, "-q")  # newer weights
        return Evaluation([score, score], [5, 5], found.version)

    best = Path(f"runs/{run.name}/best.safetensors")  # type: ignore[attr-defined]
    one_sentence(tinyverse("catch", "eval", "--name", run.name, "--weights", "best"), 2, "eval --every keeps them")  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "HEARTBEAT_SECONDS", 0.01)
        patch.setattr(evaluating, "_evaluate", play)
        run("eval", "--every", 0.01)
    assert len(set(versions)) == 3
    kept = WeightsFile.read(best)
    assert (kept.score, kept.version) == ({"mean": 3.0, "standard_error": 0.0, "episodes": 2, "greedy": 0}, versions[1])
    rows = [json.loads(line) for line in best.with_name("metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "eval/return" in row]
    assert [(row["eval/return"], row["eval/best"]) for row in rows] == [(1, 1), (3, 3), (2, 3)]
    assert info(run)["evaluation"] == rows[-1] and "eval/return" not in info(run)["metrics"]
    assert "evaluated 2.00 (best 3.00)" in " ".join(run("info").out.split())
    assert json.loads(run("eval", "--weights", "best", "--json", "--no-video").out)["version"] == versions[1]
    from tinyverse.monitoring.plot import curve

    assert curve(best.parent, y="eval/return")[1].tolist() == [1, 3, 2]


def test_eval_every_waits_for_weights_and_leaves_with_the_others(
    run: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyverse.database.redis import RedisDatabase

    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluating, "HEARTBEAT_SECONDS", 0.01)
    looks = itertools.count()
    look = finding._find

    def counted(*arguments: Any) -> Any:
        if next(looks) == 3:
            database.ask_stop()
        return look(*arguments)

    monkeypatch.setattr(finding, "_find", counted)
    said = run("eval", "--every", 0.01)
    assert said.err.count("has no weights yet") == 1 and next(looks) < 6
    database.close()


def test_eval_every_is_at_work_and_leaves_in_the_midst_of_a_game(
    run: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyverse.database.redis import RedisDatabase

    created(run)
    database, heard = RedisDatabase(redis_url, run.name), []  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluating, "HEARTBEAT_SECONDS", 0.01)

    def endless(*_: Any, should_stop: Callable[[], bool], **__: Any) -> Evaluation:
        ends = time.monotonic() + 60
        while not should_stop():
            assert time.monotonic() < ends
            if not heard and (there := [worker for worker in database.workers() if worker.version >= 0]):
                heard.extend(there)
                database.ask_stop()
        return Evaluation([], [])

    monkeypatch.setattr(evaluator, "evaluate", endless)
    assert run("eval", "--every", "--no-video", "-b", 3).out == ""
    assert [(worker.role, worker.num_envs, worker.waits_for) for worker in heard] == [("eval", 3, "")]
    assert database.workers() == []
    database.close()


EVALUATE = """\
import sys
from tinyverse.cli import main as cli
for file in sys.argv[1:]:
    try:
        cli.main(["catch", "eval", "--weights", file, "--json", "--no-video"])
    except SystemExit as ended:
        assert not ended.code
"""


def test_eval_plays_an_export_in_a_process_of_its_own(tinyverse: Tinyverse, folder: Path) -> None:
    tinyverse("catch", "local", "-n", 2, "-q", "-o", "learning_rate=0.25", "--name", "old")
    said = tinyverse("catch", "export", "x.safetensors", "--name", "old")
    assert said.out.startswith("wrote version 2 of run old (update 2, step ") and "to x.safetensors" in said.out
    shutil.copy(sorted(Path("runs/old/checkpoints").iterdir())[-1], "x.pt")
    shutil.rmtree("runs")
    files = ["x.safetensors", "x.pt"]
    words = [sys.executable, "-c", EVALUATE, *files]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["version"] for line in done.stdout.splitlines()] == [2, 2]
    for file in files:
        said = tinyverse("cartpole", "eval", "--weights", file)
        one_sentence(said, 2, "is of the experiment catch, this is cartpole: tinyverse catch eval --weights x.")
        said = tinyverse("catch", "eval", "--weights", file, "-o", "learning_rate=0.5")
        one_sentence(said, 1, "learning_rate=0.25, this asks for learning_rate=0.5")


def test_a_q_learner_is_evaluated_greedily_and_means_of_two_modes_are_not_compared(tinyverse: Tinyverse) -> None:
    tinyverse("cartpole_dqn", "local", "-n", 1, "-q", "--name", "q")
    ours = ("cartpole_dqn", "eval", "--name", "q", "--no-video", "--seed", 3, "-n", 2)
    assert ", greedy)" in tinyverse(*ours, "-j", 2).out and ", sampled)" in tinyverse(*ours, "--sampled").out
    assert tinyverse(*ours).out == tinyverse(*ours, "--greedy").out
    rows = RunFolder("runs/q").rows("evaluations")
    assert [row["eval/greedy"] for row in rows] == [1, 0, 1, 1]

    folder, weights = RunFolder("runs/two"), WeightsFile({"w": np.zeros(1, np.float32)}, 1)
    for greedy, mean, best in ((0, 5.0, 5.0), (1, 3.0, 3.0), (1, 2.0, 3.0), (0, 1.0, 1.0)):
        assert folder.keep_best(weights._replace(score={"mean": mean, "greedy": greedy})) == best
