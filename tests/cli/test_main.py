"""The command line: every option changes something, and every wrong word gets one good sentence."""

from __future__ import annotations

import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import CHECKOUT, Tinyverse, one_sentence, swap_with_spy
from tinyverse.cli import main as cli
from tinyverse.cli import play, sessions_work
from tinyverse.cli import words as cli_words
from tinyverse.database import server_config

# -- words ----------------------------------------------------------------------------------------------------------


SESSIONS = [f"sessions {verb}" for verb in ("ls", "show", "video", "export", "import")]


@pytest.mark.parametrize("verb", [verb for verb in cli_words.VERBS if verb != "sessions"] + SESSIONS)
def test_help_of_every_verb_has_an_example(tinyverse: Tinyverse, verb: str) -> None:
    for word in ("--help", "-h"):
        said = tinyverse("catch", *verb.split(), word)
        assert said.code == 0 and not said.err
        assert "Example: tinyverse " in said.out and f" {verb}" in said.out
        for option in ("--redis", "--host", "--port", "--password", "--database", "--name", "--key-prefix", "--seed",
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
    for word in (*cli_words.VERBS, "server", "atari", "cartpole", "catch", "tabular"):
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
    calls = swap_with_spy(monkeypatch, sessions_work, function, 7)
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
    calls = swap_with_spy(monkeypatch, play, "do_play")
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
    look = "import sys\nfrom tinyverse.cli import main as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'gymnasium' in sys.modules)"
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


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[int]:
    """The port of a server that asks for the password `secret`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    binary, _ = server_config.find_binary()
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
