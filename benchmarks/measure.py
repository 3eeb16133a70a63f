"""What every benchmark shares: ways of doing one thing, measured in turn in one run, and told as ratios.

    with measure.session("player", __doc__) as bench:
        bench.compare("Pong, fp32", {"ours": ours, "limit": limit, "naive": naive}, at_least={"limit": 0.88, "naive": 3.0})

A way is a function that works for a moment and returns its rate. All ways take turns, forwards and then backwards, so
that a machine that grows slower meanwhile is unfair to none; a ratio is the median of the ratios within one turn.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyverse.core import system

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("TINYVERSE_PEERS", HERE.parent / ".peers"))  # made by peers.sh

Way = Callable[[], float]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclasses.dataclass
class Row:
    """One comparison: the rates of each way in each turn, and the ratios that "ours" shall reach."""

    what: str
    unit: str
    rates: dict[str, list[float]]
    at_least: dict[str, float]  # way -> what ours / that way shall be at least
    note: str = ""

    def median(self, way: str) -> float:
        return statistics.median(self.rates[way])

    def ratio(self, way: str) -> float:
        """Ours to another way."""
        return statistics.median(a / b for a, b in zip(self.rates["ours"], self.rates[way], strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what, "unit": self.unit, "at_least": self.at_least, "note": self.note,
            "rates": {way: [float(f"{rate:.6g}") for rate in rates] for way, rates in self.rates.items()},
            "ratios": {way: round(self.ratio(way), 3) for way in self.rates if way != "ours" and "ours" in self.rates},
        }  # fmt: skip

    def __str__(self) -> str:
        parts = []
        for way, rates in self.rates.items():
            text = f"{way} {number(self.median(way))} [{number(min(rates))}..{number(max(rates))}]"
            if way != "ours" and "ours" in self.rates:
                wanted = f", wanted {self.at_least[way]:g}" if way in self.at_least else ""
                text += f" (ours: {self.ratio(way):.2f} of it{wanted})"
            parts.append(text)
        return f"{self.what} [{self.unit}]: " + "; ".join(parts) + (f". {self.note}" if self.note else "")


class Bench:
    """The rows of one script. `smoke`: as little as proves that it still works."""

    def __init__(self, name: str, *, smoke: bool, repeats: int, quiet: bool) -> None:
        self.name, self.smoke, self.repeats, self.quiet = name, smoke, repeats, quiet
        self.rows: list[Row] = []

    def compare(
        self,
        what: str,
        ways: Mapping[str, Way],
        *,
        unit: str = "steps/s",
        at_least: Mapping[str, float] | None = None,
        note: str = "",
        warm: bool = True,
    ) -> Row:
        """Measures the ways in turn and keeps the row."""
        if warm:
            for way in ways.values():
                way()
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self.repeats):
            for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
                rates[name].append(ways[name]())
        return self.keep(Row(what, unit, rates, dict(at_least or {}), note))

    def keep(self, row: Row) -> Row:
        """Adds a row that was measured elsewhere."""
        self.rows.append(row)
        if not self.quiet:
            print(row, flush=True)
        return row

    def seconds(self, full: float) -> float:
        """How long one turn of one way may take: `full`, or a fraction of a second in a smoke test."""
        return min(full, 0.2) if self.smoke else full


@contextlib.contextmanager
def session(name: str, about: str) -> Iterator[Bench]:
    """Reads --json, --smoke and --repeats; prints the rows as they come, or all of them as JSON at the end."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of lines")
    parser.add_argument("--smoke", action="store_true", help="seconds: shows that it works, measures nothing")
    parser.add_argument("--repeats", type=int, help="turns of each way (5)")
    options = parser.parse_args()
    bench = Bench(name, smoke=options.smoke, repeats=options.repeats or (1 if options.smoke else 5), quiet=options.json)
    yield bench
    if options.json:
        rows = [row.to_json() for row in bench.rows]
        print(json.dumps({"script": name, "machine": MACHINE, "smoke": bench.smoke, "rows": rows}))


def rate_of(work: Callable[[], float], seconds: float) -> float:
    """Calls `work`, which returns how much it did, until so many seconds have passed; the amount per second."""
    done, began = 0.0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        done += work()
    return done / passed


def pinned(core: int) -> None:
    """Keeps this process, and what it starts, on one of its cores."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """`pinned` for a moment: a server started inside stays on that core, this process comes back."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    pinned(core)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def peer(environment: str, script: str, *words: str, seconds: float = 600.0) -> dict[str, Any] | None:
    """What a peer's script printed as its last line (JSON); None where peers.sh has not made its environment."""
    python = PEERS / environment / "bin" / "python"
    if not python.exists():
        return None
    command = [str(python), str(HERE / "peers" / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def this_machine() -> str:
    """The processor, its cores and what matters here of its flags, in words."""
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":", 1)[1].strip() for line in words.splitlines() if line.startswith("model name")), "")
    narrow = "bf16" if system.has_bfloat16() else "no bf16"
    return f"{system.cores()} cores of {model or platform.processor()} ({narrow}), Python {platform.python_version()}"


MACHINE = this_machine()  # before a script pins itself to one of its cores


def number(value: float) -> str:
    """
    >>> number(12345.6), number(3.14159)
    ('12,346', '3.14')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit("measure.py is what the other scripts share; run one of them.")
