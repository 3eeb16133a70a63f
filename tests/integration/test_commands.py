"""Real processes and a real server, as in two terminals: together, killed, started again, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.command_line import Tinyverse
from tinyverse.database.redis import RedisDatabase
from tinyverse.monitoring.status import gather

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 90.0  # seconds; a busy machine imports torch for many of them

pytestmark = pytest.mark.timeout(300)


class Place:
    """A working directory with a server folder of its own, and the processes started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.processes: list[subprocess.Popen[str]] = []
        drop = ("TINYVERSE_REDIS_URL", "REDIS_URL", "TINYVERSE_PASSWORD", "TINYVERSE_PARENT")
        self.env = {name: value for name, value in os.environ.items() if name not in drop}
        self.env |= {"TINYVERSE_SERVER_DIR": str(path / "s"), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}

    def start(self, *words: Any) -> subprocess.Popen[str]:
        """Starts `tinyverse` with its stderr in a file `err` of the process."""
        with (self.path / f"{len(self.processes)}.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "tinyverse", *map(str, words)], cwd=self.path, env=self.env, text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        return (self.path / f"{self.processes.index(process)}.err").read_text()

    def end(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """Waits for the end of a process; what it printed."""
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, self.said(process)
        return out

    def do(self, *words: Any, code: int = 0) -> str:
        return self.end(self.start(*words), code)

    def info(self) -> dict[str, Any]:
        """What `info --json` prints of the run `catch`, without starting a process for it."""
        file = next(iter([*self.path.glob("s/run-*.json"), *self.path.glob("s/server.json")]))
        database = RedisDatabase(json.loads(file.read_text())["url"], "catch")
        try:
            return gather(database, "catch")
        finally:
            database.close()

    def mine(self) -> list[psutil.Process]:
        """Every live process that was started from here: they inherit the folder of the server, and servers, which
        write over their environment, have it in their title or belong to one that inherits it."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                inherits = process.environ().get("TINYVERSE_SERVER_DIR") == self.env["TINYVERSE_SERVER_DIR"]
                if inherits or f"{self.path}/" in " ".join(process.cmdline()):
                    found |= {process, *process.children(recursive=True)}
        return [process for process in found if lives(process)]

    def updates(self) -> list[int]:
        """Of the checkpoints on disk."""
        return sorted(int(file.stem.split("-")[1]) for file in self.path.glob("runs/*/checkpoints/update-*.pt"))


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Polls until `true()` is, and returns it."""
    ends = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < ends, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)
    return found


@pytest.fixture
def place() -> Iterator[Place]:
    here = Place(Path(tempfile.mkdtemp(prefix="tvc", dir="/tmp")))
    try:
        yield here
    finally:
        for process in here.mine():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in here.processes:
            process.communicate()
        shutil.rmtree(here.path, ignore_errors=True)


@pytest.mark.faults
def test_players_and_trainer_share_a_server_and_survive_being_killed(
    place: Place, record_property: Callable[..., None]
) -> None:
    play, train = ["catch", "play", "-b", 4], ["catch", "train", "-b", 4, "--save-every", 0.3]
    first, second, trainer = place.start(*play), place.start(*play), place.start(*train)
    until(place.updates, "a checkpoint")
    facts = until(
        lambda: (
            (found := place.info())["update"] > 3
            and len(found["workers"]) == 3
            and all(worker["sessions"] > 0 for worker in found["workers"] if worker["role"] == "play")
            and found
        ),
        "all three to work",
    )

    # one server
    servers = [process for process in place.mine() if re.search("valkey-server|redis-server", process.name())]
    assert len(servers) == 1
    assert sum("started a local server" in place.said(process) for process in (first, second, trainer)) == 1

    # info
    assert sorted(worker["role"] for worker in facts["workers"]) == ["play", "play", "train"]
    assert {worker["pid"] for worker in facts["workers"]} == {first.pid, second.pid, trainer.pid}
    for worker in facts["workers"]:
        assert {"host", "steps_per_second", "version", "lag", "waits_for", "waits_seconds", "error", "uptime"} <= set(
            worker
        )
    assert facts.keys() == json.loads(place.do("catch", "info", "--json")).keys()
    assert facts["inserted"] > 0 and facts["version"] > 0 and facts["settings"]["num_envs"] == 32

    # eval while training, and again with each new version
    watching = place.start("catch", "eval", "--every", "--json", "--no-video")
    assert watching.stdout is not None
    seen = [json.loads(watching.stdout.readline())["version"] for _ in range(2)]
    assert 0 <= seen[0] < seen[1]
    watching.send_signal(signal.SIGINT)
    place.end(watching)

    # clear refuses
    refused = place.start("catch", "clear", "--yes")
    place.end(refused, 1)
    assert "is at work" in place.said(refused)

    # kill -9, and the same commands again
    first.kill()
    trainer.kill()
    trainer.wait()
    before, checkpoint = place.info()["version"], place.updates()[-1]
    again = place.start(*train)
    place.start(*play)
    began = time.monotonic()
    until(lambda: f"from update {checkpoint:,}," in place.said(again), f"training to go on from update {checkpoint}")
    until(lambda: place.updates()[-1] > checkpoint, "a newer checkpoint")
    assert until(lambda: (found := place.info()["version"]) != before and found, "a new version") > before

    # stop, clear, and no server is left
    until(lambda: len(place.info()["workers"]) >= 3, "the new player to be at work")
    record_property("goes on", round(time.monotonic() - began, 1))
    assert "have left" in place.do("catch", "stop")
    for process in (second, again, place.processes[-2]):
        place.end(process)
    assert "stopped the local server" in place.do("catch", "clear", "--yes", "--stop")
    until(lambda: not place.mine(), "the server to end", 20)


def test_ctrl_c_ends_play_and_train_and_saves(place: Place) -> None:
    player = place.start("catch", "play", "-b", 4)
    trainer = place.start("catch", "train", "-b", 4, "--save-every", 1000)
    until(lambda: "training run" in place.said(trainer), "the trainer")
    until(lambda: place.info()["update"] > 2, "updates")
    assert not place.updates()
    for process in (trainer, player):
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        place.end(process)
        assert time.monotonic() - began < 15
    assert len(place.updates()) == 1
    assert place.info()["workers"] == []
    place.do("server", "stop")


def test_run_ends_by_itself_and_leaves_nothing_also_from_a_checkout_that_is_not_installed(place: Place) -> None:
    del place.env["PYTHONPATH"]
    words = [
        sys.executable,
        str(CHECKOUT / "tinyverse"),
        *["tabular", "run", "--players", "2", "-n", "30", "-b", "8", "--num-envs", "4", "-q"],
    ]
    done = subprocess.run(
        words, cwd=place.path, env=place.env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not place.mine() and place.updates() == [30]
    assert not list(place.path.glob("s/run-*.json"))


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_takes_its_players_and_its_server_with_it(place: Place, number: signal.Signals) -> None:
    command = place.start("catch", "run", "--players", 2, "-b", 8, "--num-envs", 4)
    until(lambda: place.updates() or "train: update" in place.said(command), "training to begin")
    until(lambda: (found := place.info())["update"] > 0 and len(found["workers"]) == 3, "both players")
    crew = until(lambda: len(found := place.mine()) >= 5 and found, "run, two players, the server and who watches it")
    assert any("-server" in process.name() for process in crew)
    command.send_signal(number)
    place.end(command, 0 if number == signal.SIGINT else -signal.SIGKILL)
    until(lambda: not any(map(lives, crew)) and not place.mine(), "players and server to be gone", 20)


def test_local_starts_no_server(tinyverse: Tinyverse, folder: Path) -> None:
    before = psutil.Process().children(recursive=True)
    assert tinyverse("tabular", "local", "-n", 5, "-q").code == 0
    assert [file.stem for file in folder.glob("runs/*/checkpoints/*.pt")] == ["update-000000005"]
    assert psutil.Process().children(recursive=True) == before and not list((folder / "server").iterdir())
