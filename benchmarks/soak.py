"""Soak: a run goes on for MINUTES while everything around it is killed, frozen, emptied and cut off, at random.

    python benchmarks/soak.py 60 [--seed N] [--report docs/results]

One trainer and two players of examples/catch.py, real processes, reach a real server through a bad network (see
tests/helpers/chaos.py). Every few seconds one thing breaks; whoever was killed is started again with the same command, as is
who could not start because there was no server. A witness reads along all the time. What must hold:

* a second trainer waits, and a trainer that wakes beside another ends and changes no file;
* hostile rows make no command fail, and damaged sessions are rejected;
* versions and cursors never go back within an incarnation of the run, and no player goes back to older weights;
* each session has its player's next number: where numbers are missing, the server had been lost just then;
* after each fault the run goes on, within a minute of everyone's start; how soon is written down;
* in the calm at the end, sessions made = learned from + rejected + dropped + waiting, to the last one;
* memory, open files and keys are in the last quarter what they were in the second.

Prints a line for each fault and a JSON line in the end, and exits with 1 where anything is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests")]

from tests.helpers.chaos import Breakable, Proxy  # noqa: E402
from tinyverse.core import codec  # noqa: E402
from tinyverse.core.errors import CodecError, DatabaseLost  # noqa: E402
from tinyverse.database.base import (  # noqa: E402
    BEGINNING,
    State,
    is_behind,
)
from tinyverse.database.connection import connect  # noqa: E402
from tinyverse.database.redis import RedisDatabase  # noqa: E402
from tinyverse.database.schema import Keys  # noqa: E402
from tinyverse.database.server_config import find_binary  # noqa: E402

RUN, BATCH = "catch", 8
COMMANDS = {
    "trainer": ["train", "-b", str(BATCH), "--save-every", "5", "-q"],
    "player 1": ["play", "-b", "8", "-q"],
    "player 2": ["play", "-b", "8", "-q"],
}
FAULTS = {  # what is done, and how often in comparison
    "trainer killed": 2, "player killed": 2, "process frozen": 1, "server emptied": 2, "server back as a copy": 2,
    "server gone for a minute": 0.4, "server frozen": 2, "network slow": 1, "network in slices": 1,
    "cut within a request": 1, "network silent": 1, "connections reset": 1, "rubbish in an answer": 1,
    "server cannot save": 1, "server misses a replica": 1, "second trainer": 1, "frozen trainer wakes beside another": 1,
    "damaged sessions": 1, "hostile rows": 1,
}  # fmt: skip
HOSTILE = [  # what a player may write: into heartbeats, episodes, errors
    "{", "[" * 100_000, "1" * 5000, '"\\ud800"', "null", '{"id": "a", "role": "play", "at": 1e999}',
    '{"id": "b", "role": "train", "at": 99999999999, "num_envs": 1e9, "steps": ' + "9" * 401 + "}",
    '{"id": "c", "role": "play", "stages": {"{share:2000000000}": 1e308}, "waits_for": "' + "x" * 5000 + '"}',
    '{"id": "d", "role": "play", "error": "\\u001b[2J\\u202e", "num_envs": 0.5}',
    '{"return": ' + "9" * 401 + ', "length": -1}', '{"return": "NaN", "length": []}', '{"error": {"a": 1}, "at": "now"}',
]  # fmt: skip
OLD_ENOUGH = 20.0  # seconds after which a process has the size it will have
GROWTH = 1.25  # of memory, open files and keys that counts as none
PATIENCE = 60.0  # seconds for a run to go on, once everyone has reached the server


class Books:
    """Which sessions were made and which arrived, by the numbers that each player gives its own."""

    def __init__(self) -> None:
        self.cursor = BEGINNING
        self.arrived = self.twice = self.lost = self.damaged = 0
        self.losses: list[float] = []  # when the server lost what it held
        self.newest: dict[str, tuple[int, float]] = {}  # player -> number of its newest session, when it was read

    def read(self, database: RedisDatabase, since: float) -> list[str]:
        """Reads on; what cannot be explained. Players that are new began `since` then."""
        wrong = []
        entries, _ = database.read(self.cursor, 10_000)
        now = time.monotonic()
        for self.cursor, blob in entries:
            try:
                metadata = codec.decode(codec.decompress(blob))[1]
            except CodecError:
                self.damaged += 1
                continue
            player, number = metadata["player"], int(metadata["sequence"])
            last, when = self.newest.get(player, (-1, since))
            if number <= last:
                self.twice += 1
                continue
            if missing := number - last - 1:
                self.lost += missing
                if not any(when <= loss <= now for loss in self.losses):
                    wrong.append(f"{missing} sessions of {player} are missing before its {number}th")
            self.arrived += 1
            self.newest[player] = (number, now)
        return wrong


class Soak:
    """The processes, what is done to them, and what was seen."""

    def __init__(self, seed: int, server: Breakable, proxy: Proxy) -> None:
        self.random, self.server, self.proxy = random.Random(seed), server, proxy
        self.folder = Path(tempfile.mkdtemp(prefix="tvsoak", dir="/tmp"))
        self.env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TINYVERSE_REDIS_URL": proxy.url}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, float] = {}
        self.database = RedisDatabase(server.url, RUN, timeout=1.5)
        self.books = Books()
        self.faults: Counter[str] = Counter()
        self.recovered: dict[str, list[float]] = defaultdict(list)  # fault -> seconds until all went on
        self.in_vain = 0  # starts while there was no server
        self.wrong: list[str] = []
        self.sizes: list[tuple[float, str, float]] = []  # when, of what, how much
        self.seen, self.newest_version = State(), -1
        self.loaded: dict[str, int] = {}  # player -> version of its weights
        self.met: set[int] = set()  # pids of those that have reached the server
        self.slowest_start = 0.0  # when somebody had not yet
        self.broken: tuple[str, float, Callable[[State], bool]] | None = None  # fault, its end, whether all goes on
        self.began = time.monotonic()

    # -- what is done -----------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        self.processes[name] = self.process(name, COMMANDS[name], self.folder)
        self.started[name] = time.monotonic()

    def process(self, name: str, words: list[str], folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        with (self.folder / f"{name}.err").open("wb") as err:
            return subprocess.Popen(
                [sys.executable, "-m", "tinyverse", "catch", *words], cwd=folder, env=self.env,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err,
            )  # fmt: skip

    def words_of(self, name: str) -> str:
        """The last that it printed."""
        return (self.folder / f"{name}.err").read_text(errors="replace").strip()[-300:]

    def break_something(self) -> None:
        kind = self.random.choices(list(FAULTS), list(FAULTS.values()))[0]
        if "trainer" in kind and self.processes["trainer"].pid not in self.met:  # it has no lease yet
            return
        self.faults[kind] += 1
        seconds, pid = self.random.uniform(0.2, 3.0), 0
        if kind.endswith("killed"):
            name = "trainer" if kind == "trainer killed" else self.random.choice(["player 1", "player 2"])
            self.end(name, signal.SIGKILL)
            self.start(name)
            pid = self.processes[name].pid if name != "trainer" else 0
        elif kind == "process frozen":
            process = self.processes[self.random.choice(list(COMMANDS))]
            process.send_signal(signal.SIGSTOP)
            self.wait(5 * seconds)  # a lease lasts 10
            process.send_signal(signal.SIGCONT)
        elif kind in ("server emptied", "server back as a copy", "server gone for a minute"):
            if kind == "server back as a copy":
                self.server.save()
                self.wait(seconds)  # what comes after the copy will be gone
            self.server.kill()
            if kind == "server emptied":
                self.server.forget()
            self.wait(60.0 if "minute" in kind else seconds)
            self.books.losses.append(time.monotonic())
            self.server.start()
            self.seen = State(run_id=self.seen.run_id)  # of a copy: what came after it is gone, heartbeats too
            self.loaded.clear()
        elif kind == "server frozen":
            self.server.freeze()
            self.wait(seconds)
            self.server.thaw()
        elif kind == "connections reset":
            self.proxy.reset()
        elif kind == "rubbish in an answer":
            self.proxy.rubbish = b"\x00?"
            self.wait(seconds)
        elif kind == "server cannot save":
            with self.server.unsaved():
                self.wait(seconds)
        elif kind == "server misses a replica":
            with connect(self.server.admin_url) as admin:
                admin.config_set("min-replicas-to-write", 1)
                self.wait(seconds)
                admin.config_set("min-replicas-to-write", 0)
        elif kind == "second trainer":
            self.second_trainer(seconds)
        elif kind == "frozen trainer wakes beside another":
            self.frozen_trainer()
        elif kind == "damaged sessions":
            for blob in self.database.newest(3):
                damaged = bytearray(blob[1])
                damaged[self.random.randrange(len(damaged))] ^= 1 << self.random.randrange(8)
                self.database.append([bytes(damaged)])
        elif kind == "hostile rows":
            self.hostile_rows()
        else:
            bad: dict[str, Any] = {
                "network slow": {"rate": 50_000}, "network in slices": {"pieces": 50}, "cut within a request": {"fuse": 500},
                "network silent": {"silent": True},
            }  # fmt: skip
            vars(self.proxy).update(bad[kind])
            self.wait(seconds)
            self.proxy.heal()
        self.witness()
        self.broken = kind, time.monotonic(), self.plays(pid) if pid else self.publishes()
        print(f"{time.monotonic() - self.began:6.0f} s  {kind}", file=sys.stderr, flush=True)

    def second_trainer(self, seconds: float) -> None:
        """It waits for the first, in a folder of its own and in the same one, and changes nothing."""
        for folder in (self.folder / "elsewhere", self.folder):
            other = self.process("other", COMMANDS["trainer"], folder)
            self.wait(3 * seconds)
            if other.poll() is not None:
                self.wrong.append(f"a second trainer did not wait ({other.returncode}): {self.words_of('other')}")
            other.terminate()
            other.wait(PATIENCE)

    def frozen_trainer(self) -> None:
        """Frozen until another trainer, elsewhere, has its lease; woken, it ends and leaves its folder as it is."""
        first = self.processes.pop("trainer")
        first.send_signal(signal.SIGSTOP)
        lease = Keys(RUN).lease
        other = self.process("other", COMMANDS["trainer"], self.folder / "elsewhere")
        with connect(self.server.url) as client:
            self.wait_for(lambda: f":{other.pid}:" in str(client.get(lease)))
        before = self.files()
        first.send_signal(signal.SIGCONT)
        self.wait_for(lambda: first.poll() is not None)
        if first.poll() != 1:
            self.wrong.append(
                f"a trainer whose lease another has did not end ({first.poll()}): {self.words_of('trainer')}"
            )
            first.kill()
        if changed := before ^ self.files():
            self.wrong.append(f"a trainer whose lease another has changed {sorted(changed)[:3]}")
        other.terminate()
        other.wait(PATIENCE)
        self.start("trainer")

    def files(self) -> set[tuple[str, int]]:
        """The files of the trainer's folder that two trainers share, and when they were changed."""
        files = [path for path in (self.folder / "runs").rglob("*") if path.is_file() and "tfevents" not in path.name]
        return {(str(path), path.stat().st_mtime_ns) for path in files}

    def hostile_rows(self) -> None:
        """A player writes rubbish where people look; whoever looks still sees."""
        keys = Keys(RUN)
        with connect(self.server.url) as client:
            for number, row in enumerate(HOSTILE):
                client.hset(keys.heartbeats, f"hostile-{number}", row)
                client.xadd(keys.episodes, {"row": row})
                client.xadd(keys.errors, {"row": row})
        info = self.process("info", ["info"], self.folder)
        self.wait_for(lambda: info.poll() is not None)
        if info.poll() != 0:
            self.wrong.append(f"info of hostile rows gave {info.poll()}: {self.words_of('info')}")
            info.kill()

    def wait_for(self, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE
        while not true() and time.monotonic() < ends:
            self.wait(0.25)

    def end(self, name: str, how: signal.Signals) -> None:
        self.processes[name].send_signal(how)
        self.processes[name].wait(2 * PATIENCE)

    def publishes(self) -> Callable[[State], bool]:
        """Whether the trainer has published again; it does when it has learned from what was played."""
        version = self.newest_version
        return lambda state: state.version > version

    def plays(self, pid: int) -> Callable[[State], bool]:
        return lambda state: any(worker.pid == pid and worker.sessions for worker in self.database.workers())

    def wait(self, seconds: float) -> None:
        """Goes on looking meanwhile."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self.witness()
            time.sleep(min(left, 0.25))

    # -- what is seen -----------------------------------------------------------------------------------------------

    def witness(self) -> None:
        """What may never go back within an incarnation did not; who ended by itself is said."""
        with contextlib.suppress(DatabaseLost):
            self.refresh()
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                words = self.words_of(name)
                never_began = process.pid not in self.met and "does not answer" in words.rpartition("\n")[2]
                if never_began and process.returncode == 1:
                    self.in_vain += 1
                else:
                    self.wrong.append(f"{name} ended by itself ({process.returncode}): {words}")
                self.start(name)

    def refresh(self) -> None:
        self.wrong += self.books.read(self.database, min(self.started.values()))
        state, workers = self.database.state(), self.database.workers()
        if state.run_id and state.run_id == self.seen.run_id:  # what lies there without a run is of none
            if state.version < self.seen.version:
                self.wrong.append(f"version {self.seen.version} was followed by {state.version}")
            if not is_behind(self.seen.cursor, state.cursor):
                self.wrong.append(f"cursor {self.seen.cursor} was followed by {state.cursor}")
        else:
            self.loaded.clear()
        for worker in workers:
            self.met.add(worker.pid)
            if worker.role == "play" and worker.version <= state.version:  # a higher one is of the incarnation before
                if worker.version < self.loaded.get(worker.id, -1):
                    self.wrong.append(
                        f"{worker.id} went back from weights {self.loaded[worker.id]} to {worker.version}"
                    )
                self.loaded[worker.id] = worker.version
        self.seen, self.newest_version = state, max(self.newest_version, state.version)
        if self.broken:
            kind, since, goes_on = self.broken
            if goes_on(state):
                self.recovered[kind].append(time.monotonic() - since)
                self.broken = None
            elif not all(process.pid in self.met for process in self.processes.values()):
                self.slowest_start = time.monotonic()  # torch is imported, for minutes where others want the processor
            elif time.monotonic() - max(since, self.slowest_start) > PATIENCE:
                self.wrong.append(f"{PATIENCE:.0f} s after '{kind}' the run has not gone on")
                self.broken = None

    def measure(self) -> None:
        now = time.monotonic() - self.began
        for name, process in self.processes.items():
            with contextlib.suppress(psutil.Error):
                facts = psutil.Process(process.pid)
                if time.monotonic() - self.started[name] > OLD_ENOUGH:
                    self.sizes.append((now, f"{name.split()[0]} MB", facts.memory_info().rss / 1e6))
                    self.sizes.append((now, f"{name.split()[0]} files", facts.num_fds()))
        with contextlib.suppress(Exception), connect(self.server.admin_url, timeout=1.5) as admin:
            self.sizes.append((now, "keys", admin.dbsize()))
            self.sizes.append((now, "server MB", admin.info("memory")["used_memory"] / 1e6))

    def growth(self, seconds: float) -> dict[str, list[float]]:
        """The most of each thing in the second quarter and in the last."""
        found = {}
        for what in sorted({what for _, what, _ in self.sizes}):
            early = [size for when, of, size in self.sizes if of == what and 0.25 < when / seconds < 0.5]
            late = [size for when, of, size in self.sizes if of == what and when / seconds > 0.75]
            if early and late:
                found[what] = [round(max(early), 1), round(max(late), 1)]
                if max(late) > GROWTH * max(early) and max(late) - max(early) > 3:
                    self.wrong.append(f"{what} grew from {max(early):.0f} to {max(late):.0f}")
        return found

    # -- the calm at the end ----------------------------------------------------------------------------------------

    def settled(self) -> dict[str, float]:
        """Players end and the trainer learns from what they left; then, where every session of this incarnation is."""
        for name in ("player 1", "player 2"):
            self.end(name, signal.SIGTERM)
            del self.processes[name]
        before, ends = State(), time.monotonic() + 2 * PATIENCE
        while time.monotonic() < ends:
            self.wait(3.0)
            row = (self.database.metrics(1) or [{}])[0]
            if self.seen == before and self.seen.deficit < BATCH and row.get("update") == self.seen.update:
                break
            before = self.seen
        else:
            self.wrong.append(f"the trainer does not come to rest: {self.seen}, {row}")
        return {
            "made": self.seen.inserted, "learned from": self.seen.update * BATCH, "waiting": self.seen.deficit,
            "rejected": self.database.counters().get("rejected", 0),
            "dropped": row.get("replay/unused", 0) + row.get("replay/expired", 0),
        }  # fmt: skip

    def count_all(self) -> dict[str, float]:
        """With nothing broken any more, where every session went that was made in a quarter of a minute."""
        self.database = RedisDatabase(self.server.url, RUN, timeout=PATIENCE)
        ends = time.monotonic() + 3 * PATIENCE
        while self.broken and time.monotonic() < ends:
            self.wait(1.0)
        before, (arrived, twice) = self.settled(), (self.books.arrived, self.books.twice)
        self.start("player 1")
        self.start("player 2")
        self.wait(15.0)
        ends = time.monotonic() + 3 * PATIENCE
        while self.books.arrived < arrived + 50 * BATCH and time.monotonic() < ends:
            self.wait(1.0)
        after = self.settled()
        counts = {name: after[name] - before[name] for name in after}
        seen = self.books.arrived - arrived + self.books.twice - twice
        if counts["made"] != seen or counts["made"] < 50 * BATCH:
            self.wrong.append(f"the server counts {counts['made']:.0f} new sessions, the witness {seen}")
        if counts["made"] != sum(counts.values()) - counts["made"]:
            self.wrong.append(f"not all sessions are accounted for: {counts}")
        return counts

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
            here.wait(20.0)
            next_fault = 0.0
            while (passed := time.monotonic() - here.began) < 60 * minutes:
                here.wait(0.5)
                here.measure()
                strikes = here.broken is None or here.random.random() < 0.005  # some do not wait until the run goes on
                if time.monotonic() > next_fault and strikes:
                    here.break_something()
                    next_fault = time.monotonic() + here.random.uniform(2.0, 10.0)
            counts = here.count_all()
            return {
                "minutes": round(passed / 60, 1), "seed": seed, "server": ".".join(map(str, find_binary()[1])), "faults": dict(here.faults),
                "seconds until all goes on": {
                    kind: {"median": round(statistics.median(times), 1), "most": round(max(times), 1), "of": len(times)}
                    for kind, times in sorted(here.recovered.items())
                },
                "starts without a server": here.in_vain, "versions": here.newest_version,
                "sessions": {"arrived": here.books.arrived, "twice": here.books.twice, "lost with the server": here.books.lost, "damaged": here.books.damaged},
                "in the calm": counts, "sizes in the second and last quarter": here.growth(60 * minutes),
                "wrong": here.wrong,
            }  # fmt: skip
        finally:
            here.close()


def page(result: dict[str, Any]) -> str:
    """The report for people."""
    calm, sessions = result["in the calm"], result["sessions"]
    took, none = result["seconds until all goes on"], {"median": "–", "most": "–"}
    rows = [
        f"| {kind} | {times} | {took.get(kind, none)['median']} | {took.get(kind, none)['most']} |"
        for kind, times in sorted(result["faults"].items())
    ]
    sizes = result["sizes in the second and last quarter"].items()
    return "\n".join([
        "# Soak", "", f"`python benchmarks/soak.py {result['minutes']:.0f} --seed {result['seed']}`, "
        f"server {result['server']}; what it does and checks is said at its top. "
        "Written by `--report`.", "",
        "| fault | times | seconds until all went on, median | at most |", "|---|---:|---:|---:|", *rows, "",
        "A trainer or player that was killed imports torch again first. A fault that struck before all went on again "
        "has no time of its own.", "",
        f"* {sessions['arrived']:,} sessions arrived and {sessions['twice']:,} arrived twice (pushed again because the "
        f"answer was lost; rejected). {sessions['damaged']:,} were damaged. {sessions['lost with the server']:,} went with a server that was emptied or came "
        "back as an older copy; no other is missing.",
        f"* In the calm at the end {calm['made']:.0f} were made: {calm['learned from']:.0f} learned from, "
        f"{calm['rejected']:.0f} rejected, {calm['dropped']:.0f} dropped, {calm['waiting']:.0f} more waiting than before.",
        f"* {result['versions']:,} versions were published. {result['starts without a server']} times a process was "
        "started while there was no server, said so, and was started again.",
        "* The most in the second and in the last quarter: "
        + ", ".join(f"{what} {early:g} and {late:g}" for what, (early, late) in sizes) + ".", "",
        "What was wrong: " + ("; ".join(result["wrong"]) or "nothing."), "",
    ])  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="a folder for soak.json and soak.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))  # and so do all that it started
    result = soak(given.minutes, given.seed)
    print(json.dumps(result))
    if given.report:
        (given.report / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.report / "soak.md").write_text(page(result))
    sys.exit(bool(result["wrong"]))
