"""Soak: a run goes on for MINUTES while everything around it is killed, frozen, emptied and cut off, at random.

    python benchmarks/soak.py 60 [--seed N]

One trainer and two players of examples/catch.py, real processes, reach a real server through a bad network (see
tests/chaos.py). Every few seconds one thing breaks; whoever was killed is started again with the same command. A witness
asks all the time for versions and positions. In the end, when all is calm: versions and positions never went back within
an epoch, whatever was played is accounted for to the last session, the run went on after the last fault, and memory,
open files and keys are what they were after the first quarter. Prints a JSON line; exits with 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "tests"))

from chaos import Breakable, Proxy  # noqa: E402

from tinyverse.database import State, order  # noqa: E402
from tinyverse.errors import DatabaseError, DatabaseLost  # noqa: E402
from tinyverse.redis_database import RedisDatabase  # noqa: E402
from tinyverse.redis_server import connect  # noqa: E402

RUN, BATCH = "catch", 8
COMMANDS = {
    "trainer": ["train", "-b", str(BATCH), "--save-every", "5", "-q"],
    "player 1": ["play", "-b", "8", "-q"],
    "player 2": ["play", "-b", "8", "-q"],
}
OLD_ENOUGH = 20.0  # seconds after which a process has the size it will have
GROWTH = 1.25  # of memory, open files and keys that counts as none
PATIENCE = 60.0  # seconds for a calm run to come to rest; torch takes many of them to import


class Soak:
    """The processes, what is done to them, and what was seen."""

    def __init__(self, seed: int, server: Breakable, proxy: Proxy) -> None:
        self.random, self.server, self.proxy = random.Random(seed), server, proxy
        self.folder = Path(tempfile.mkdtemp(prefix="tvsoak", dir="/tmp"))
        self.env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TINYVERSE_REDIS_URL": proxy.url}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.database = RedisDatabase(server.url, RUN, timeout=1.5)
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.sizes: list[tuple[float, str, float]] = []  # when, of what, how much
        self.seen = State()
        self.began = time.monotonic()

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.err").open("ab") as err:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tinyverse", "catch", *COMMANDS[name]], cwd=self.folder, env=self.env,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
            )  # fmt: skip

    def break_something(self) -> None:
        kind = self.random.choice(
            ["kill", "kill", "empty", "copy", "freeze", "slow", "slices", "fuse", "silent", "reset"]
        )
        self.faults[kind] += 1
        seconds = self.random.uniform(0.2, 3.0)
        if kind == "kill":
            name = self.random.choice(list(COMMANDS))
            self.processes[name].kill()
            self.processes[name].wait()
            self.start(name)
        elif kind in ("empty", "copy"):
            if kind == "copy":
                self.server.save()
            self.server.kill()
            if kind == "empty":
                self.server.forget()
            time.sleep(seconds)
            self.server.start()
            if kind == "copy":
                self.seen = State(epoch=self.seen.epoch)  # what came after the copy is gone
        elif kind == "freeze":
            self.server.freeze()
            time.sleep(seconds)
            self.server.thaw()
        elif kind == "reset":
            self.proxy.reset()
        else:
            bad: dict[str, Any] = {"slow": {"rate": 50_000}, "slices": {"pieces": 50}, "fuse": {"fuse": 500}}
            vars(self.proxy).update(bad.get(kind, {"silent": True}))
            time.sleep(seconds)
            self.proxy.heal()

    def witness(self) -> None:
        """What may never go back within an epoch did not; who ended by itself is said."""
        with contextlib.suppress(DatabaseLost):
            state = self.database.state()
            if state.epoch == self.seen.epoch:
                if state.version < self.seen.version:
                    self.wrong.append(f"version {self.seen.version} was followed by {state.version}")
                if order(state.position) < order(self.seen.position):
                    self.wrong.append(f"position {self.seen.position} was followed by {state.position}")
            self.seen = state
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.wrong.append(f"{name} ended by itself ({process.returncode}): {self.last_words(name)}")
                self.start(name)

    def measure(self) -> None:
        now = time.monotonic() - self.began
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                facts = psutil.Process(process.pid)
                if time.time() - facts.create_time() > OLD_ENOUGH:
                    self.sizes.append((now, f"{name.split()[0]} MB", facts.memory_info().rss / 1e6))
                    self.sizes.append((now, f"{name.split()[0]} files", facts.num_fds()))
        with contextlib.suppress(Exception), connect(self.server.admin_url, timeout=1.5) as admin:
            self.sizes.append((now, "keys", admin.dbsize()))
            self.sizes.append((now, "server MB", admin.info("memory")["used_memory"] / 1e6))

    def last_words(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text(errors="replace").strip()[-300:]

    def rest(self) -> None:
        """All is calm: the run goes on; then players end, and the trainer uses up what they left."""
        self.proxy.heal()
        version, ends = self.database.state().version, time.monotonic() + PATIENCE
        while self.database.state().version <= version + 1:
            if time.monotonic() > ends:
                self.wrong.append(f"the run does not go on after the last fault: {self.last_words('trainer')}")
                return
            time.sleep(0.2)
        for name in COMMANDS:
            if name != "trainer":
                self.processes[name].terminate()
                self.processes[name].wait(30)
        ends = time.monotonic() + 15
        while (left := (state := self.database.state()).inserted - state.delivered) >= BATCH or left < 0:
            if time.monotonic() > ends:
                self.wrong.append(f"of {state.inserted} sessions {left:g} are not accounted for")
                return
            time.sleep(0.2)

    def growth(self, seconds: float) -> dict[str, float]:
        """How much larger each thing is in the last quarter than in the second, at most."""
        found = {}
        for what in sorted({what for _, what, _ in self.sizes}):
            early = [size for when, of, size in self.sizes if of == what and 0.25 < when / seconds < 0.5]
            late = [size for when, of, size in self.sizes if of == what and when / seconds > 0.75]
            if early and late:
                found[what] = max(late) / max(early)
                if found[what] > GROWTH and max(late) - max(early) > 3:
                    self.wrong.append(f"{what} grew from {max(early):.0f} to {max(late):.0f}")
        return found

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def soak(minutes: float, seed: int) -> dict[str, Any]:
    with Breakable() as server, Proxy(server.url) as proxy:
        here = Soak(seed, server, proxy)
        try:
            for name in COMMANDS:
                here.start(name)
            next_fault = time.monotonic() + 20.0
            while (passed := time.monotonic() - here.began) < 60 * minutes:
                here.witness()
                if time.monotonic() > next_fault:
                    here.break_something()
                    next_fault = time.monotonic() + here.random.uniform(3.0, 12.0)
                here.measure()
                time.sleep(0.5)
            here.rest()
            with contextlib.suppress(DatabaseError):
                here.seen = here.database.state()
            return {
                "minutes": round(passed / 60, 1), "faults": dict(here.faults), "growth": {
                    what: round(ratio, 2) for what, ratio in here.growth(60 * minutes).items()
                },
                "update": here.seen.update, "version": here.seen.version, "wrong": here.wrong,
            }  # fmt: skip
        finally:
            here.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = soak(given.minutes, given.seed)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
