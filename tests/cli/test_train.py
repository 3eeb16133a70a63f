"""Play, train, local and run: every option reaches the trainer, the players or the run's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_line import Tinyverse, created, info, one_sentence, swap_with_spy
from tinyverse.cli import play
from tinyverse.cli import run as together
from tinyverse.cli import train as training
from tinyverse.cli.context import Asked
from tinyverse.database import server
from tinyverse.trainer.run_folder import RunFolder


def last_row(run: Tinyverse) -> dict[str, Any]:
    """The last line of metrics.jsonl."""
    return json.loads(Path(f"runs/{run.name}/metrics.jsonl").read_text().splitlines()[-1])  # type: ignore[attr-defined]


def test_a_run_is_played_and_trained(run: Tinyverse) -> None:
    facts = created(run)
    assert facts["experiment"] == "catch" and facts["update"] == 0 and facts["version"] >= 0
    run("play", "-n", 2, "-b", 3, "-q")
    assert info(run)["inserted"] == 6  # -n batches of -b sessions
    run("train", "-n", 2, "-b", 3, "-q")
    now = info(run)
    assert (now["update"], now["delivered"], now["step"]) == (
        2,
        6,
        2 * 3 * 9 - 3,
    )  # a second session of a game begins with its reset
    assert now["version"] > facts["version"]


def test_play_s_looks_for_weights_that_often(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    created(run)
    calls = swap_with_spy(monkeypatch, play, "play", 0)
    run("play", "-s", 5)
    run("play")
    assert [named["sync_every"] for _, named in calls] == [5, 1]


def test_play_steps_games_in_processes_of_their_own(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    created(run)
    calls: list[Any] = []

    class Spy(play.ProcessPool):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            calls.append((*arguments[1:3], named["step_timeout"], named["memory"]))
            super().__init__(*arguments, **named)

    monkeypatch.setattr(play, "ProcessPool", Spy)
    run("play", "-n", 2, "-b", 3, "--workers", 2, "-q")
    assert info(run)["inserted"] == 6
    run("play", "-n", 1, "-b", 3, "--workers", 2, "--cores", 2, "-q")
    run("play", "-n", 1, "--step-timeout", 20, "--worker-memory", 4000, "-q")
    assert calls == [(3, 2, None, None), (2, 1, None, None), (1, 1, None, None), (32, 1, 20.0, 4000 << 20)]


@pytest.mark.parametrize(("option", "value"), [("--workers", -1), ("--step-timeout", 0), ("--worker-memory", 0)])
def test_limits_of_workers_are_positive(tinyverse: Tinyverse, option: str, value: int) -> None:
    said = tinyverse("catch", "play", option, value)
    assert said.code == 2 and option[2:].replace("-", " ") in said.err


def test_train_s_publishes_that_often(run: Tinyverse) -> None:
    before = created(run)["version"]
    run("play", "-n", 8, "-b", 2, "-q")
    run("train", "-n", 4, "-b", 1, "-s", 1, "-q")
    often = info(run)["version"] - before
    run("train", "-n", 4, "-b", 1, "-s", 100, "-q")
    assert info(run)["version"] - before - often < often


def test_buffer_size_is_the_streams_capacity(run: Tinyverse) -> None:
    assert created(run)["capacity"] == 5000
    assert created(run, "--buffer-size", 48)["capacity"] == 48


def test_max_lag_drops_old_sessions(run: Tinyverse) -> None:
    created(run)
    run("play", "-n", 3, "-b", 2, "-q")
    run("train", "--max-lag", 0, "-b", 2, "--minutes", 0.03, "-q")
    assert info(run)["update"] == 1 and last_row(run)["replay/expired"] >= 2


def test_min_sessions_are_waited_for(run: Tinyverse) -> None:
    created(run)
    run("play", "-n", 2, "-b", 2, "-q")
    run("train", "--min-sessions", 5, "-b", 1, "--minutes", 0.02, "-q")
    assert info(run)["update"] == 0
    run("train", "--min-sessions", 4, "-b", 1, "-n", 1, "-q")
    assert info(run)["update"] == 1


def test_reuse_is_how_often_a_session_is_learned_from(tinyverse: Tinyverse) -> None:
    for reuse in (1, 3):
        assert tinyverse("tabular", "local", "-n", 30, "-q", "--name", f"r{reuse}", "--reuse", reuse).code == 0
        row = json.loads(Path(f"runs/r{reuse}/metrics.jsonl").read_text().splitlines()[-1])
        assert row["replay/reuse"] == pytest.approx(reuse, rel=0.2)


def test_threads(run: Tinyverse) -> None:
    for threads in (2, 1):
        created(run, "--threads", threads)
        assert torch.get_num_threads() == threads


def test_options_that_reach_the_trainer(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train(trainer: Any, **named: Any) -> None:
        calls.append(((trainer,), named))
        trainer.leave()

    monkeypatch.setattr(training, "train", train)
    run("train", "--precision", "bf16", "--save-every", 7, "-n", 5, "-s", 3)
    run("train")
    (trainer,), named = calls[0]
    assert (trainer.config.precision, trainer.config.publish_every, trainer.replay.device.type) == ("bf16", 3, "cpu")
    assert (named["save_every"], named["updates"]) == (7, 5)
    (trainer,), named = calls[1]
    assert (trainer.config.precision, trainer.config.publish_every, named["save_every"], named["updates"]) == (
        "fp32",
        1,
        60,
        None,
    )


def test_compile_says_what_it_misses(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tinyverse("tabular", "local", "-n", 1, "--name", "c", "--compile")
    assert said.code != 0 and "wants an agent with a PyTorch network" in said.err
    monkeypatch.setattr("shutil.which", lambda name: None)
    said = tinyverse("catch", "local", "-n", 1, "--name", "d", "--compile")
    assert said.code != 0 and "wants a C++ compiler" in said.err


@pytest.mark.slow
def test_compile_learns_the_same(tinyverse: Tinyverse) -> None:
    rows = []
    for name, words in (("plain", ()), ("compiled", ("--compile",))):
        assert tinyverse("catch", "local", "-n", 3, "--name", name, "--seed", 1, *words).code == 0
        rows.append(json.loads(Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()[-1]))
    assert rows[1]["loss/total"] == pytest.approx(rows[0]["loss/total"], rel=1e-3)


def test_profile_writes_a_file(tinyverse: Tinyverse) -> None:
    assert tinyverse("tabular", "local", "-n", 2, "--name", "p").code == 0
    assert not Path("runs/p/profile.txt").exists()
    assert tinyverse("tabular", "local", "-n", 2, "--name", "p", "--profile").code == 0
    assert "player.py" in Path("runs/p/profile.txt").read_text()


def test_resume_and_fresh(tinyverse: Tinyverse) -> None:
    def updates() -> int:
        return json.loads(Path("runs/tabular/metrics.jsonl").read_text().splitlines()[-1])["update"]

    one_sentence(tinyverse("tabular", "local", "-n", 2, "--resume"), 2, "--resume: there is nothing in runs/tabular/")
    tinyverse("tabular", "local", "-n", 2)
    tinyverse("tabular", "local", "-n", 3, "--resume")
    assert updates() == 5
    said = tinyverse("tabular", "local", "-n", 1, "--fresh")
    assert said.code == 0 and updates() == 1
    assert "the older run is kept in runs/tabular." in said.err and len(list(Path("runs").glob("tabular*"))) == 2


def test_other_settings_are_listed_and_forced(tinyverse: Tinyverse) -> None:
    def settings() -> dict[str, Any]:
        return json.loads(Path("runs/tabular/settings.json").read_text())["settings"]

    tinyverse("tabular", "local", "-n", 2)
    words = ["tabular", "local", "-n", 3, "-o", "learning_rate=0.25", "-o", "discount=0.9"]
    before = settings()
    parts = [f"learning_rate={before['learning_rate']}, discount={before['discount']}"]
    parts += ["learning_rate=0.25, discount=0.9", "--fresh", "--force"]
    one_sentence(tinyverse(*words, "--resume"), 1, *parts)
    assert settings() == before
    one_sentence(tinyverse(*words, "--force", "--fresh"), 2, "leave one of them out")
    assert tinyverse(*words, "--force").code == 0
    assert settings() == {**before, "learning_rate": 0.25, "discount": 0.9}
    assert json.loads(Path("runs/tabular/metrics.jsonl").read_text().splitlines()[-1])["update"] == 5
    said = tinyverse(*words[:4]).err  # without -o: as the run is, not as its file says
    assert "goes on with learning_rate=0.25, discount=0.9" in said and f"its file says {parts[0]}" in said
    assert settings() == {**before, "learning_rate": 0.25, "discount": 0.9}
    assert "goes on with" not in tinyverse(*words).err
    file = Path("runs/tabular/settings.json")
    file.write_text(file.read_text().replace("slippery", "icy"))  # as if the experiment had renamed it since
    one_sentence(tinyverse(*words[:4]), 1, "was made with icy, which tabular has no longer", "--name", "--fresh")
    assert tinyverse(*words[:4], "--fresh").code == 0


def test_force_changes_the_agreement_on_the_server(run: Tinyverse, tinyverse: Tinyverse, monkeypatch: Any) -> None:
    from tinyverse.database.base import new_worker

    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    run("train", "-n", 1, "-b", 2, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    other = ["catch", "train", "-n", 1, "-b", 2, "-q", "--minutes", 0.01, "-o", "learning_rate=0.5", *name]
    one_sentence(tinyverse(*other), 1, "learning_rate=0.5", "--force")
    with monkeypatch.context() as patch:
        patch.setattr("tinyverse.database.redis.RedisDatabase.workers", lambda self: [new_worker("train")])
        one_sentence(tinyverse(*other, "--force"), 1, "--force: run", "is being trained on")
    assert tinyverse(*other, "--force").code == 0
    assert (info(run)["settings"]["learning_rate"], info(run)["update"]) == (0.5, 1)
    shutil.rmtree(f"runs/{run.name}")  # type: ignore[attr-defined]
    other[other.index("learning_rate=0.5")] = "learning_rate=0.75"
    one_sentence(tinyverse(*other, "--force"), 1, "there is no checkpoint of run")


def test_a_run_begins_with_weights_of_another(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyverse.agents.torch_agent import TorchAgent

    taken: list[Any] = []
    monkeypatch.setattr(TorchAgent, "set_weights", lambda self, weights: taken.append(weights))
    tinyverse("catch", "local", "-n", 1, "-q", "--name", "old")
    (file,) = Path("runs/old/checkpoints").iterdir()
    words = ["catch", "local", "-n", 1, "--name", "new", "--init-from", file]
    said = tinyverse(*words)
    assert said.code == 0 and f"run new begins with the weights in {file}" in said.err
    kept = torch.load(file, weights_only=True)["weights"]
    assert all((taken[0][name] == kept[name].numpy()).all() for name in kept) and len(taken) == 1
    said = tinyverse(*words)  # the same command goes on
    assert said.code == 0 and "goes on with its own weights" in said.err and len(taken) == 1
    one_sentence(tinyverse("catch", "local", "--init-from", "x.pt"), 2, "--init-from x.pt: there is no such file")


def test_weights_that_do_not_fit_begin_no_run(tinyverse: Tinyverse) -> None:
    tinyverse("cartpole", "local", "-n", 1, "-q")
    (file,) = Path("runs/cartpole/checkpoints").iterdir()
    one_sentence(tinyverse("catch", "local", "--init-from", file), 1, "Weight ", "made by another network")


def test_save_replay(tinyverse: Tinyverse) -> None:
    def stored(option: str) -> Any:
        assert tinyverse("catch", "local", "-n", 1, "-q", "--name", f"x{option}", option).code == 0
        (file,) = Path(f"runs/x{option}/checkpoints").iterdir()
        return torch.load(file, weights_only=True)["replay"]

    assert stored("--save-replay") is not None and stored("--no-save-replay") is None


def test_games_of_local(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    for games, sessions in ((2, 2), (4, 4)):
        said = tinyverse("catch", "local", "-n", 1, "-b", 4, "--games", games, "--name", f"g{games}")
        assert said.code == 0
        assert f" {4 * 9 - (4 - sessions)} steps" in said.err  # a second session of a game begins with its reset
    one_sentence(tinyverse("catch", "local", "-b", 3, "--games", 2), 2, "make -b a multiple of --games")


@pytest.mark.parametrize("verb", ["local", "run"])
def test_two_do_not_train_into_one_folder(tinyverse: Tinyverse, verb: str) -> None:
    with RunFolder("runs/catch").alone():
        one_sentence(tinyverse("catch", verb), 1, "another process trains into runs/catch/ already. End it first")
    with RunFolder("runs/catch").alone():  # it has let go
        pass


def test_a_run_ends_with_what_came_out(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the dashboard, which would say that nobody is at work any more."""
    shown: list[Any] = []

    class Seen(training.Progress):
        def __init__(self, line: Any, render: Any, **options: Any) -> None:
            shown.append(render)
            super().__init__(line, render, **options)

    monkeypatch.setattr(training, "Progress", Seen)
    run("run", "-n", 2, "--games", 4)
    assert shown[0]().plain.startswith("train: update 2, ")


def test_that_the_end_is_near_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([False, True])
    asks = training.saying_so(Asked("catch"), lambda: next(answers))
    assert [asks(), asks(), asks()] == [False, True, True]
    assert capsys.readouterr().err == "tinyverse: saves and ends; Ctrl-C again ends at once\n"


def test_players_and_games_of_run(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, words: list[str], **_: Any) -> None:
            started.append(words)

        def poll(self) -> int:
            return 0

        def terminate(self) -> None: ...
        def wait(self, timeout: float = 0) -> None: ...

    monkeypatch.setattr(together.subprocess, "Popen", Process)
    monkeypatch.setattr(together, "train_run", lambda *_, **__: None)
    words = [
        "catch",
        "run",
        "--redis",
        "redis://x",
        "--database",
        "mine:Mine",
        "--players",
        3,
        "--games",
        5,
        "--step-timeout",
        2,
        "--seed",
        10,
    ]
    (Path("mine.py")).write_text(
        "from tinyverse import MemoryDatabase\nclass Mine(MemoryDatabase):\n    def __init__(self, url, run): super().__init__()"
    )
    monkeypatch.setattr(server, "find_server", lambda *_, **__: server.Address("redis://x", "--redis"))
    assert tinyverse(*words).code == 0
    assert len(started) == 3
    assert all(
        " --games=5 --step-timeout=2.0" in " ".join(words) and "play --name catch" in " ".join(words)
        for words in started
    )
    assert [words[words.index("--seed") + 1] for words in started] == ["11", "12", "13"]
    assert all("--database mine:Mine" in " ".join(words) for words in started)
