"""What becomes of speed as things grow: players, sessions stored, bytes in a session, parameters of a network.

    python benchmarks/growth.py [--json] [--smoke] [--repeats N]

Everything meets on a real server of its own. A row is one curve, its points measured in turn: ours is the rate at the
largest size, smallest the rate at the smallest, and the points between are named by their size. Rates are per unit (a
step, a session, a byte, a parameter): 1 is a cost that stays in proportion, more is better. The latency of a push is
told as players per second of it, which does not fall as long as latency grows in proportion at worst.

Players are `Player` and `Uploader` around 8 environments that cost next to nothing and an agent of a few NumPy calls. They are
threads of up to 4 processes: 64 processes would measure the operating system.
The curves are drawn to docs/results/growth.png (with --smoke, into a temporary folder).
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
from gymnasium import spaces

from tinyverse.agents.agent import Agent
from tinyverse.core import system
from tinyverse.core.errors import DatabaseError
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.weights import decode_weights, encode_weights
from tinyverse.database.base import BEGINNING, State, new_worker
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server
from tinyverse.envs.pool import Pool, Step
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader

NUM_ENVS, STEPS, PROCESSES, HOLDER = 8, 20, 4, "bench"
LATENCY = "seconds per push"
Curve = dict[int, float]  # size -> rate, or what it costs


def main() -> None:
    system.prepare()  # as every tinyverse process
    with measure.session("growth", __doc__) as bench:
        with private_server() as server:
            panels = {
                "players": grow_players(bench, server.url),
                "sessions stored": grow_store(bench, server.url),
                "bytes in a session": grow_sessions(bench, server.url),
                "parameters": grow_weights(bench, server.url),
            }
        folder = Path(tempfile.mkdtemp()) if bench.smoke else measure.HERE.parent / "docs" / "results"
        draw(panels, folder / "growth.png")


def grow(bench: measure.Bench, what: str, unit: str, ways: Mapping[int, measure.Way], note: str = "") -> Curve:
    """Measures one curve and keeps its row."""
    names = {size: f"{size:,}" for size in ways} | {min(ways): "smallest", max(ways): "ours"}
    note = f"From {min(ways):,} to {max(ways):,}. {note}".strip()
    ordered = {names[size]: ways[size] for size in sorted(ways, reverse=True)}
    row = bench.compare(what, ordered, unit=unit, at_least={"smallest": 0.8}, note=note, warm=not bench.smoke)
    return {size: row.median(names[size]) for size in ways}


def moment(bench: measure.Bench) -> float:
    """Seconds of one turn of one way."""
    return 0.02 if bench.smoke else 0.5


def opened(url: str, run: str, capacity: int = 5000) -> RedisDatabase:
    database = RedisDatabase(url, run)
    database.create({})
    database.report(capacity=capacity)
    return database


# Players


def grow_players(bench: measure.Bench, url: str) -> dict[str, Curve]:
    database = opened(url, "players")
    database.acquire_lease(HOLDER)
    database.put_weights(encode_weights({}, version=0, update=0, step=0), 0, holder=HOLDER)
    counts, seconds = ((1, 2), 0.4) if bench.smoke else ((1, 4, 16, 64), 2.0)
    latencies: dict[int, list[float]] = {count: [] for count in counts}
    with ProcessPoolExecutor(
        min(PROCESSES, counts[-1]), multiprocessing.get_context("spawn"), system.prepare
    ) as executor:

        def way(count: int) -> float:
            shares = [len(range(part, count, PROCESSES)) for part in range(min(count, PROCESSES))]
            parts = list(executor.map(play_some, itertools.repeat(url), shares, itertools.repeat(seconds)))
            latencies[count].append(statistics.median(itertools.chain.from_iterable(seconds for _, seconds in parts)))
            return sum(rate for rate, _ in parts)

        ways = {count: lambda count=count: way(count) for count in counts}
        steps = grow(bench, "Steps pushed by all players, 8 environments each", "steps/s", ways)
    names = {counts[-1]: "ours", counts[0]: "smallest"}
    rates = {name: [count / seconds for seconds in latencies[count][-bench.repeats :]] for count, name in names.items()}
    medians = {count: statistics.median(latencies[count][-bench.repeats :]) for count in counts}
    told = ", ".join(f"{count} players {1000 * seconds:.1f} ms" for count, seconds in medians.items())
    bench.keep(measure.Row("Latency of a push", "players/s", rates, {"smallest": 0.8}, f"Median: {told}."))
    return {"steps/s": steps, LATENCY: medians}


def play_some(url: str, count: int, seconds: float) -> tuple[float, list[float]]:
    """Plays with some players in threads; (steps/s that arrived, seconds of each push) after a time of settling."""
    databases = [Timed(url, "players") for _ in range(count)]
    uploaders = [Uploader(database, new_worker("play", num_envs=NUM_ENVS), Cheap()) for database in databases]
    ends = time.monotonic() + 1.5 * seconds
    with ThreadPoolExecutor(count) as threads:
        playing = [threads.submit(play_until, uploader, ends) for uploader in uploaders]
        time.sleep(seconds / 2)
        before, began = sum(uploader.worker.sessions for uploader in uploaders), time.monotonic()
        for database in databases:
            database.seconds.clear()
        time.sleep(max(0.0, ends - began))
        pushed, passed = sum(uploader.worker.sessions for uploader in uploaders) - before, time.monotonic() - began
        latencies = [one for database in databases for one in list(database.seconds)]
        for player in playing:
            player.result()
    return STEPS * pushed / passed, latencies


def play_until(uploader: Uploader, ends: float) -> None:
    uploader.waiting.set("weights")  # makes its first turn a short one
    uploader.start()
    play(Player(Cheap(), Drift(), STEPS), uploader, should_stop=lambda: time.monotonic() > ends)
    uploader.close()
    uploader.database.close()


class Timed(RedisDatabase):
    """Notes how long each push took."""

    def __init__(self, url: str, run: str) -> None:
        super().__init__(url, run)
        self.seconds: list[float] = []

    def append(self, blobs: Any, **more: Any) -> State:
        began = time.perf_counter()
        state = super().append(blobs, **more)
        if blobs:
            self.seconds.append(time.perf_counter() - began)
        return state


class Drift(Pool):
    """Points that drift where they are pushed; an episode is 100 steps."""

    num_envs = NUM_ENVS
    observation_space, action_space = spaces.Box(-np.inf, np.inf, (4,), np.float32), spaces.Discrete(2)

    def reset(self, seed: int | None = None) -> np.ndarray:
        self._points, self._time = np.zeros((NUM_ENVS, 4), np.float32), 0
        return self._points

    def step(self, actions: np.ndarray) -> Step:
        self._time += 1
        self._points = 0.9 * self._points + (actions[:, None] - np.float32(0.5))
        nobody, everybody = np.zeros(NUM_ENVS, bool), np.full(NUM_ENVS, self._time % 100 == 99)
        return Step(self._points, self._points[:, 0], nobody, everybody)


class Cheap(Agent):
    """A line through the origin, and a little noise."""

    def __init__(self) -> None:
        self._random, self._weights = np.random.default_rng(0), np.ones(4, np.float32)

    def act(self, observations: Any, state: Any, is_first: np.ndarray, greedy: bool = False) -> tuple[Any, Any, Any]:
        logits = observations @ self._weights + self._random.standard_normal(len(is_first), np.float32)
        return (logits > 0).astype(np.int64), state, {"behaviour_log_prob": -np.abs(logits)}


# Sessions


def grow_store(bench: measure.Bench, url: str) -> dict[str, Curve]:
    session, _ = session_of(1000)
    appends, reads = {}, {}
    for count in (100, 1000) if bench.smoke else (100, 1000, 10_000, 100_000):
        database, blob = opened(url, f"stored-{count}", capacity=count), session.encode()
        for _ in range(0, count, 100):
            database.append([blob] * 100)
        appends[count] = appending(bench, database, lambda blob=blob: blob, amount=1)
        reads[count] = reading(bench, database, lambda blob: 1, at_once=32)
    curves = {
        "append": grow(bench, "Append to sessions stored, one of 1 KB at a time", "sessions/s", appends),
        "read": grow(bench, "Read of sessions stored, 32 of 1 KB at a time", "sessions/s", reads),
    }
    return {name: {count: 1 / rate for count, rate in curve.items()} for name, curve in curves.items()}


def grow_sessions(bench: measure.Bench, url: str) -> dict[str, Curve]:
    appends, reads = {}, {}
    for size in (1000, 10_000) if bench.smoke else (1000, 10_000, 100_000, 1_000_000, 10_000_000):
        (session, spec), database = session_of(size), opened(url, f"size-{size}", capacity=16)
        database.append([session.encode()] * 8)
        appends[size] = appending(bench, database, session.encode, amount=size)
        reads[size] = reading(bench, database, lambda blob, spec=spec: spec.decode(blob).rewards.size * spec.nbytes, 4)
    return {
        "encode and append": grow(bench, "Session encoded and appended, bytes of noise in it", "bytes/s", appends),
        "read and decode": grow(bench, "Session read and decoded, bytes of noise in it", "bytes/s", reads),
    }


def session_of(size: int) -> tuple[Session, SessionSpec]:
    """One step with observations of so many random bytes."""
    arrays = {
        "observations": np.random.default_rng(0).integers(0, 256, (2, size // 2), np.uint8),
        "actions": np.zeros(1, np.int64), "rewards": np.zeros(1, np.float32), "terminated": np.zeros(1, bool),
        "truncated": np.zeros(1, bool), "alive": np.ones(1, bool),
    }  # fmt: skip
    session = Session(arrays, {"player": "bench", "sequence": "0", "version": "0", "update": "0"})
    return session, SessionSpec({name: (array.shape, array.dtype) for name, array in session.arrays.items()})


def appending(bench: measure.Bench, database: RedisDatabase, make: Callable[[], bytes], amount: int) -> measure.Way:
    def append() -> float:
        database.append([make()])
        return amount

    return lambda: measure.rate_of(append, moment(bench))


def reading(bench: measure.Bench, database: RedisDatabase, take: Callable[[bytes], float], at_once: int) -> measure.Way:
    """Walks through all that is stored, again and again."""
    cursor = BEGINNING

    def read() -> float:
        nonlocal cursor
        entries, _ = database.read(cursor, at_once)
        cursor = entries[-1][0] if entries else BEGINNING
        return sum(take(blob) for _, blob in entries)

    return lambda: measure.rate_of(read, moment(bench))


# Weights


def grow_weights(bench: measure.Bench, url: str) -> dict[str, Curve]:
    curves = {}
    for kind, largest in (("float32", 60_000_000), ("bfloat16", 100_000_000)):
        counts = (10_000, 100_000) if bench.smoke else (10_000, 100_000, 1_000_000, 10_000_000, largest)
        narrow = kind == "bfloat16"
        both = {count: weight_ways(bench, opened(url, f"{kind}-{count}"), count, narrow) for count in counts}
        note = "" if bench.smoke or narrow else largest_refused(opened(url, "refused"))
        for verb, part in (("publish", 0), ("load", 1)):
            what = f"{verb.capitalize()} weights, {kind} on the wire, by parameters"
            ways = {count: pair[part] for count, pair in both.items()}
            rates = grow(bench, what, "parameters/s", ways, note)
            curves[f"{verb}, {kind}"] = {count: count / rate for count, rate in rates.items()}
    return curves


def weight_ways(
    bench: measure.Bench, database: RedisDatabase, count: int, narrow: bool
) -> tuple[measure.Way, measure.Way]:
    """Ways to encode and publish so many parameters, and to load them into an array."""
    versions = itertools.count()
    weights = {"weight": np.random.default_rng(0).standard_normal(count, np.float32)}
    loaded = np.empty_like(weights["weight"])

    def publish() -> float:
        version = next(versions)
        blob = encode_weights(weights, version=version, update=0, step=0, bfloat16=narrow)
        database.put_weights(blob, version, holder=HOLDER)
        return count

    def load() -> float:
        np.copyto(loaded, decode_weights(database.get_weights()[1])[0]["weight"])
        return count

    def publishing() -> float:
        database.acquire_lease(HOLDER)
        return measure.rate_of(publish, moment(bench))

    return publishing, lambda: measure.rate_of(load, moment(bench))


def largest_refused(database: RedisDatabase, count: int = 100_000_000) -> str:
    database.acquire_lease(HOLDER)
    weights = {"weight": np.zeros(count, np.float32)}
    try:
        database.put_weights(encode_weights(weights, version=0, update=0, step=0), 0, holder=HOLDER)
    except DatabaseError as error:
        return f"{count:,} in float32 are refused: {error}"
    return f"{count:,} in float32 are published too."


# The figure


def draw(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), dpi=120)
    labels = ("steps/s of all players", "seconds per session", "bytes/s", "seconds per set of weights")
    for axis, label, (what, curves) in zip(axes.flat, labels, panels.items(), strict=True):
        axis.set(xscale="log", xlabel=what)
        axis.grid(alpha=0.3)
        lines = []
        for number, (name, curve) in enumerate(curves.items()):
            own = axis.twinx() if name == LATENCY else axis
            lines += own.plot(
                sorted(curve), [curve[size] for size in sorted(curve)], "o-", color=f"C{number}", label=name
            )
            own.set(yscale="log", ylabel=name if name == LATENCY else label)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, high / 100), high)  # so that what is nearly flat looks so
        axis.legend(handles=lines, frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
