"""Monitor: what everyone does and what each waits for, for people and for scripts.

gather(database, name)  -> one dict with stable keys (`info --json`)
panel(facts)            -> the same for a terminal (`info`, `info --watch`, `run`)
TrainLog                -> metrics.jsonl, writers and the database's log, a row per interval
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tinyverse.core.errors import DatabaseError
from tinyverse.core.text import counted
from tinyverse.core.timing import Ticker
from tinyverse.database.base import Database
from tinyverse.monitoring import diagnosis
from tinyverse.monitoring.writers import TensorBoard, Writer
from tinyverse.trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

RECENT = 100  # episodes in a mean return
ROWS = 300  # of the log, among which the newest evaluation is looked for


def gather(database: Database, name: str) -> dict[str, Any]:
    """All that is known of a run. Never builds an environment."""
    meta, state, size = database.meta(), database.state(), database.size()
    episodes = [row for row in database.episodes(RECENT) if _is_number(row.get("return"))]  # any player may write there
    rows = database.metrics(ROWS)
    metrics = [row for row in rows if "eval/return" not in row]
    returns = [episode["return"] for episode in episodes if not episode.get("human")]
    human = [episode["return"] for episode in episodes if episode.get("human")]
    counters = database.counters()
    facts = {
        "run": name,
        "experiment": meta.get("experiment"),
        "settings": json.loads(meta["settings"]) if meta else {},
        "epoch": state.epoch, "version": state.version, "update": state.update, "step": state.step,
        "inserted": state.inserted, "delivered": state.delivered,
        "sessions": size["sessions"], "bytes": size["bytes"], "capacity": state.capacity,
        "reuse": state.delivered / state.inserted if state.inserted else None,
        "mean_return": sum(returns) / len(returns) if returns else None, "episodes": len(returns),
        "workers": [dataclasses.asdict(worker) for worker in sorted(database.workers(), key=lambda worker: worker.id)],
        "human_sessions": counters.pop("human", 0), "human_return": sum(human) / len(human) if human else None,
        "counters": counters, "metrics": metrics[-1] if metrics else {},
        "evaluation": next((row for row in reversed(rows) if "eval/return" in row), {}),
        "errors": [row for row in database.errors() if all(isinstance(row.get(name), str) for name in _ERROR)],
    }  # fmt: skip
    return facts | diagnosis.more(facts, state, meta, metrics)


_ERROR = ("when", "role", "host", "error", "traceback")  # of a row, by `log_error`; with a pid


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def headline(facts: Mapping[str, Any]) -> str:
    """The run in one line."""
    if not facts["epoch"]:
        return f"run {facts['run']}: no trainer has created it yet"
    mean = "–" if facts["mean_return"] is None else f"{facts['mean_return']:.2f}"
    judged = facts["evaluation"]
    evaluated = f", evaluated {judged['eval/return']:.2f} (best {judged['eval/best']:.2f})" if judged else ""
    return (
        f"{facts['run']} ({facts['experiment']}): return {mean} over the last {counted(facts['episodes'], 'episode')}, "
        f"{counted(facts['step'], 'step')}, update {facts['update']:,}, version {facts['version']}{evaluated}"
    )


def panel(facts: Mapping[str, Any]) -> RenderableType:
    """The run as a table of its workers."""
    fill = 100 * facts["sessions"] / max(facts["capacity"], 1)
    reuse = "–" if facts["reuse"] is None else f"{facts['reuse']:.2f}"
    buffer = f"buffer {facts['sessions']:,} of {facts['capacity']:,} sessions ({fill:.0f} %), {size(facts['bytes'])}"
    if facts["sessions"]:
        there = facts["metrics"].get("replay/bytes_per_session")
        in_memory = f", {size(there)} in the trainer's memory" if there else ""
        buffer += f" ({size(facts['bytes'] / facts['sessions'])} a session{in_memory})"
        buffer += f", compressed {facts['compression']:.1f} times" if (facts["compression"] or 0) > 1 else ""
    wanted = "" if facts["reuse_wanted"] is None else f" of {facts['reuse_wanted']:g} wanted"
    buffer += f", reuse {reuse}{wanted}"
    table = Table(box=None, pad_edge=False)
    for column, justify in _COLUMNS:
        table.add_column(column, justify="right" if justify == "right" else "left")
    for worker in facts["workers"]:
        table.add_row(*_cells(worker))
    rejected = facts["counters"].get("rejected", 0)
    buffer += f", {counted(rejected, 'session')} rejected" if rejected else ""
    if facts["human_sessions"]:
        mean = "" if facts["human_return"] is None else f", return {facts['human_return']:.2f}"
        buffer += f", {counted(facts['human_sessions'], 'session')} played by people{mean}"
    nobody = [] if facts["workers"] else [Text("nobody is at work", style="yellow")]
    said = diagnosis.lines(facts)
    if failed := facts["errors"]:
        said.append(f"{counted(len(failed), 'error')}; the last: {failed[-1]['error'][:200]} (info --errors)")
    return Group(Text(headline(facts), style="bold"), Text(buffer), table, *nobody, *map(Text, said))


def errors(facts: Mapping[str, Any]) -> RenderableType:
    """The last errors with their tracebacks."""
    rows = [
        Text(f"{row['when']} {row['role']} on {row['host']} (pid {row.get('pid')})\n{row['traceback']}")
        for row in facts["errors"]
    ]
    return Group(*rows) if rows else Text("no worker has ended with an error")


_COLUMNS = (
    ("role", "left"), ("host", "left"), ("pid", "right"), ("steps/s", "right"), ("version", "right"), ("lag", "right"),
    ("up", "right"), ("waits for", "left"), ("last error", "left"),
)  # fmt: skip


_LOST = {"dropped": "sessions dropped", "faults": "games rebuilt"}


def _cells(worker: Mapping[str, Any]) -> list[str]:
    waits = f"{worker['waits_for']} ({worker['waits_seconds']:.0f} s)" if worker["waits_for"] else ""
    lost = [f"{worker[name]:,} {what}" for name, what in _LOST.items() if worker[name]]
    late = f" [silent for {worker['seen']:.0f} s]" if worker["seen"] > 5 else ""
    return [
        escape(worker["role"]), escape(worker["host"]), str(worker["pid"]), f"{worker['steps_per_second']:,.0f}", str(worker["version"]),
        f"{worker['lag']:.1f}", duration(worker["uptime"]), escape("; ".join(filter(None, [waits + late, *lost]))), escape(worker["error"].split("\n")[-1][:80]),
    ]  # fmt: skip


def size(count: float) -> str:
    """Bytes for people.

    >>> size(2_345_678)
    '2.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3725)
    '1h02m'
    """
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    return f"{minutes}m{int(seconds % 60):02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


class TrainLog:
    """Writes a row of the trainer's numbers each interval, and keeps the newest for whoever shows it."""

    def __init__(
        self,
        row: Callable[[], dict[str, Any]],
        folder: RunFolder,
        database: Database,
        *,
        seconds: float = 10.0,
        writers: Sequence[Writer] = (),
        arrays: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.latest: dict[str, Any] = {}
        self._row, self._folder, self._database = row, folder, database
        self._ticker = Ticker(seconds, later=True)
        self._began = time.monotonic()
        self._seconds_before = max((row.get("seconds", 0.0) for row in folder.metrics()), default=0.0)
        self._writers, self._arrays = list(writers), arrays
        self._events: Writer | None = None

    def turn(self) -> None:
        """Writes if the interval has passed."""
        if self._ticker.due():
            self.write()

    def write(self) -> None:
        self.latest = {"seconds": round(self._seconds_before + time.monotonic() - self._began, 1), **self._row()}
        try:
            self._to_disk()
        except OSError as error:
            logger.warning("%s/ cannot be written to (%s). Training goes on.", self._folder.path, error)
        with contextlib.suppress(DatabaseError):  # the files have it
            self._database.log_metrics(self.latest)

    def close(self) -> None:
        self.write()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.close()

    def _to_disk(self) -> None:
        self._folder.log(self.latest)
        if self._events is None:
            self._events = TensorBoard(self._folder)
            self._writers.append(self._events)
        whole = {**self.latest, **self._arrays()}
        for writer in self._writers:
            try:
                writer.write(whole)
            except Exception as error:  # theirs, of any kind; the files have the row
                logger.warning("%s took no row (%s). Training goes on.", type(writer).__name__, error)
