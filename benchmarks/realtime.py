"""Real time: does an environment with a clock of its own ever wait for the database, or for weights?

    python benchmarks/realtime.py [--json] [--smoke] [--repeats N]

An environment at 30 Hz shows frames of noise, which do not compress, to the network of 2015 (6.7 MB). What is told is the 99th
percentile of the gaps between two actions, as actions per second; and, in a sentence, by how much of the environment's period
pushing and loading make it longer, which may be a tenth. With `--repeats 3` it takes less than four minutes.

ours     the loop of `play` in real time: sessions pushed to a real server, new weights every second from another process;
         in the second row the server is frozen (SIGSTOP) for a third of the time
limit    the same loop without a server
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections import Counter
from typing import Any

import measure

from tinyverse.core import system

system.prepare()

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402

from tinyverse import TorchAgent  # noqa: E402
from tinyverse.core.weights import encode_weights  # noqa: E402
from tinyverse.database.base import new_worker  # noqa: E402
from tinyverse.database.redis import RedisDatabase  # noqa: E402
from tinyverse.database.server import private_server  # noqa: E402
from tinyverse.envs import SerialPool  # noqa: E402
from tinyverse.networks import ModularNetwork, NatureConv, Window  # noqa: E402
from tinyverse.player.loop import play  # noqa: E402
from tinyverse.player.player import Player  # noqa: E402
from tinyverse.player.uploader import Uploader  # noqa: E402

HERTZ, STEPS = 30, 20
WORSE = 0.1  # of the period: by so much may the 99th percentile be longer


class Clock(gymnasium.Env):
    """Shows a frame at each tick, whether or not somebody has acted; remembers when it was acted in."""

    observation_space = gymnasium.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self) -> None:
        self.acted: list[float] = []
        self._frames = np.random.default_rng(0).integers(0, 256, (16, 1, 84, 84), np.uint8)
        self._tick = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self._frames[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        now = time.perf_counter()
        self.acted.append(now)
        self._tick = int(now * HERTZ) + 1  # a tick that was missed is gone
        time.sleep(max(0.0, self._tick / HERTZ - time.perf_counter()))
        return self._frames[self._tick % 16], 0.0, False, False, {}


def main() -> None:
    with measure.session("realtime", __doc__) as bench, private_server() as server:
        system.set_threads(1)
        seconds = max(bench.seconds(15.0), 1.0)
        limit = way_of(None, seconds)
        for what, frozen in (("30 Hz", 0), (f"30 Hz, server frozen {seconds / 3:.0f} s of {seconds:.0f}", server.pid)):
            counts = Counter[str]()
            with publishing(server.url):
                ours = way_of(server.url, seconds, frozen, counts)
                row = bench.compare(
                    what,
                    {"ours": ours, "limit": limit},
                    unit="actions/s, 99th percentile",
                    at_least={"limit": 1 / (1 + WORSE)},
                    warm=False,
                )
            row.note = judged(row, counts)
            if not bench.quiet:
                print(f"{what}: {row.note}", flush=True)


def judged(row: measure.Row, counts: Counter[str]) -> str:
    """What was asked, and whether it holds, in a sentence."""
    gaps = {way: 1000 / row.median(way) for way in row.rates}  # milliseconds
    worse = statistics.median(
        (1 / ours - 1 / limit) * HERTZ for ours, limit in zip(row.rates["ours"], row.rates["limit"], strict=True)
    )
    return (
        f"{gaps['ours']:.1f} ms with pushing and loading, {gaps['limit']:.1f} ms without: {worse:+.1%} of the period, at "
        f"most {WORSE:+.0%} is allowed: {'holds' if worse <= WORSE else 'DOES NOT HOLD'}. {counts['sessions']} sessions "
        f"pushed, {counts['dropped']} dropped, {counts['versions']} versions loaded"
    )


def way_of(url: str | None, seconds: float, frozen: int = 0, counts: Counter[str] | None = None) -> measure.Way:
    """99 of 100 gaps between actions are shorter than one over this.

    Args:
        frozen: a process to stop meanwhile.
        counts: is added to: sessions pushed and dropped, and versions of the weights that were loaded.
    """
    agents = [agent() for _ in range(2)]

    def way() -> float:
        clock = Clock()
        player = Player(agents[0], SerialPool(lambda: clock, 1, realtime=True), STEPS)
        if url is None:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                player.play()
        else:
            database = RedisDatabase(url, "realtime")
            uploader = Uploader(database, new_worker("play", num_envs=1), agents[1])
            uploader.start()
            while uploader.state.version < 0:
                time.sleep(0.1)
            versions = set[int]()
            with freezing(frozen, seconds):
                play(
                    player,
                    uploader,
                    realtime=True,
                    should_stop=lambda: bool(clock.acted) and time.perf_counter() > clock.acted[0] + seconds,
                    on_batch=lambda: versions.add(player.version),
                )
            uploader.close()
            database.close()
            if counts is not None:
                worker = uploader.worker
                counts.update(sessions=worker.sessions, dropped=worker.dropped, versions=len(versions - {-1}))
        gaps = np.diff(clock.acted[3:])
        return 1 / float(np.quantile(gaps, 0.99)) if len(gaps) else float("nan")

    return way


def agent() -> TorchAgent:
    return TorchAgent(ModularNetwork(Clock.observation_space, Clock.action_space, trunk=Window(4, NatureConv())))


@contextlib.contextmanager
def freezing(process: int, seconds: float) -> Any:
    """Stops a process for the second third of so many seconds."""
    timers = [
        threading.Timer(seconds * part / 3, os.kill, (process, number))
        for part, number in ((1, signal.SIGSTOP), (2, signal.SIGCONT))
    ]
    for timer in timers if process else []:
        timer.start()
    try:
        yield
    finally:
        for timer in timers if process else []:
            timer.join()


@contextlib.contextmanager
def publishing(url: str) -> Any:
    """Another process that publishes weights every second, as a trainer does."""
    process = multiprocessing.get_context("spawn").Process(target=publish, args=(url,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def publish(url: str) -> None:
    system.set_threads(1)
    database, weights, version = RedisDatabase(url, "realtime"), agent().get_weights(), 0
    database.create({})
    database.report(capacity=1000)
    holder = f"{os.uname().nodename}:{os.getpid()}:benchmark"
    while True:
        with contextlib.suppress(Exception):  # the server is frozen now and then
            if database.acquire_lease(holder):
                version = max(version, database.state().version) + 1
                blob = encode_weights(weights, version=version, update=version, step=0)
                database.put_weights(blob, version, holder=holder, update=version, step=0)
        time.sleep(1.0)


if __name__ == "__main__":
    main()
