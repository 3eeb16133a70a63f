"""Options of all commands about a run."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.command_line import Tinyverse, one_sentence, swap_with_spy
from tinyverse.database import server_config


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
        ends = time.monotonic() + 60
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
