"""The commands: their help, their options, and that naming them costs nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.helpers.command_line import CHECKOUT, Tinyverse
from tinyverse.cli import main as cli
from tinyverse.cli import words as cli_words

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
    "run": "--players --num-envs --workers --step-timeout -b -n -s --buffer-size --reuse --resume --fresh",
    "local": "--num-envs -b -n -s --buffer-size --reuse --resume --fresh",
    "info": "--watch --errors --json",
    "watch": "--listen --values --no-values",
    "doctor": "--json",
    "clear": "--yes --keep-weights --force --stop",
}  # fmt: skip


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_verb_has_its_options(verb: str) -> None:
    command = cli.verbs.get_command(click.Context(cli.verbs), verb)
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


def test_naming_a_command_imports_no_torch(folder: Path) -> None:
    look = (
        "import click, sys\nfrom tinyverse.cli.main import verbs\nctx = click.Context(verbs)\n"
        "print(len([verbs.get_command(ctx, name) for name in verbs.list_commands(ctx)]))\n"
        "print({'torch', 'gymnasium'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    said = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.split() == [str(len(cli.VERBS) + len(cli.GLOBALS)), "set()"]


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
    command = [sys.executable, *words, "my.pong", "play"]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT) if "-m" in words else ""}
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert said.returncode == 1 and said.stderr.splitlines()[-1] == "ValueError: found"


def test_words_that_cannot_be_written_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk, a reader that has gone, an output that is closed."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "tinyverse", "catch", "local", "-n", "2"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stderr=full, timeout=100, check=False).returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run(command, stderr=writer, timeout=100, check=False).returncode == 0
    os.close(writer)
    closed = ["/bin/sh", "-c", '"$@" >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, timeout=100, check=False).returncode == 0


def test_a_service_of_kubernetes_is_no_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINYVERSE_WATCH_PORT", "tcp://10.0.0.7:8000")
    monkeypatch.setenv("TINYVERSE_PLAY_PORT", "udp://10.0.0.7:8000")
    with pytest.raises(SystemExit) as ended:
        cli.main(["catch", "watch", "--help"])
    assert ended.value.code == 0 and "TINYVERSE_WATCH_PORT" not in os.environ
