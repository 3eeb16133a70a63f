"""A window under Xvfb, and keys that xdotool presses: somebody plays a game of a real run."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.people import until
from tinyverse.core.session import SessionSpec
from tinyverse.database.redis import RedisDatabase
from tinyverse.monitoring.status import gather

pytestmark = [pytest.mark.desktop, pytest.mark.timeout(200)]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def display() -> Iterator[str]:
    """A screen of its own."""
    missing = [tool for tool in ("Xvfb", "xdotool") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} here: apt-get install xvfb xdotool")
    reader, writer = os.pipe()
    words = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    server = subprocess.Popen(words, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as said:
            number = said.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(10)


class Desk:
    """Processes of one run before one screen, and hands on its keyboard."""

    def __init__(self, display: str, url: str, run: str, folder: Path) -> None:
        self.env = {**os.environ, "DISPLAY": display, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        self.env["TINYVERSE_REDIS_URL"] = url
        self.env.pop("SDL_VIDEODRIVER", None)
        self.url, self.run, self.folder = url, run, folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        game = str(CHECKOUT / "examples" / "catch.py")
        command = [sys.executable, "-m", "tinyverse", game, *words, "--name", self.run]
        with (self.folder / f"{len(self.processes)}.out").open("w") as out:
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=out, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes], code: int = 0) -> str:
        """What it said, once it has ended."""
        returned = process.wait(60)
        said = (self.folder / f"{self.processes.index(process)}.out").read_text()
        assert returned == code, said
        return said

    def hands(self, *words: str) -> str:
        return subprocess.run(
            ["xdotool", *words], env=self.env, capture_output=True, text=True, timeout=20
        ).stdout.strip()


@pytest.fixture
def desk(display: str, redis_url: str, tmp_path: Path) -> Iterator[Desk]:
    found = Desk(display, redis_url, f"desk-{secrets.token_hex(4)}", tmp_path)
    yield found
    for process in found.processes:
        process.kill()
        process.wait(10)


def test_a_person_plays_and_their_sessions_are_their_own(desk):
    database = RedisDatabase(desk.url, desk.run)
    desk.start("train")
    until(lambda: database.state().version >= 0, 60)
    person = desk.start("play", "--human", "--fps", "20")
    window = until(lambda: desk.hands("search", "--pid", str(person.pid)), 60)
    desk.hands("windowfocus", "--sync", window)

    def sessions():
        spec = SessionSpec.from_json(database.meta()["spec"])
        return [spec.decode(blob) for _, blob in database.newest(1000)]

    def await_action(action):
        """A session through which the person did nothing else."""
        return until(lambda: any((each.actions == action).all() for each in sessions()), 30)

    await_action(1)  # no key: stay
    desk.hands("keydown", "Left")
    await_action(0)
    desk.hands("keyup", "Left", "keydown", "Right")
    await_action(2)
    desk.hands("keyup", "Right")

    # the clock: 9 steps a session at 20 steps/s
    begun, before = time.monotonic(), database.state().inserted
    until(lambda: database.state().inserted >= before + 4, 30)
    assert 1.2 < time.monotonic() - begun < 20.0  # 36 steps take 1.8 s

    until(lambda: gather(database, desk.run)["human_sessions"] >= 7, 30)  # heartbeats tell it
    facts = gather(database, desk.run)
    assert facts["human_sessions"] <= facts["inserted"]
    assert facts["mean_return"] is None and facts["human_return"] is not None
    assert [worker["role"] for worker in facts["workers"]] == ["human", "train"]
    assert all(each.human and not each.extras["behaviour_log_prob"].any() for each in sessions())

    desk.hands("key", "Escape")
    assert "the window was closed" in desk.end(person)
    until(lambda: all(worker.role == "train" for worker in database.workers()))

    rows = json.loads(desk.end(desk.start("sessions", "ls", "--json")))
    assert len(rows) >= 7 and all(row["human"] for row in rows)
    shown = json.loads(desk.end(desk.start("sessions", "show", rows[0]["id"], "--values", "--json")))
    values = [row["value"] for row in shown["rows"]]
    assert len(values) == 9 and all(isinstance(value, float) for value in values)


def test_without_a_screen_it_is_said_so(desk):
    database = RedisDatabase(desk.url, desk.run)
    desk.start("train")
    until(lambda: database.state().version >= 0, 60)
    del desk.env["DISPLAY"]
    person = desk.start("play", "--human")
    assert "no window can be opened here" in desk.end(person, 2)
