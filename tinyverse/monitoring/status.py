"""Status: all that is known of a run, as one dict with stable keys, for `info --json`, the panel and the dashboard."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinyverse.core.errors import TinyverseError
from tinyverse.core.run_config import FORMAT, experiment_and_settings
from tinyverse.core.session import SessionSpec
from tinyverse.core.text import printable
from tinyverse.database.base import LOG_KEPT, Database
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import diagnosis, metrics
from tinyverse.trainer.run_folder import RunFolder

RECENT = 100  # episodes in a mean return
ROWS = 300  # of the log, that are searched for the newest evaluation
ERROR = ("when", "role", "host", "error", "traceback")  # of a row, by `database.base.log_error`


def gather(database: Database, name: str) -> dict[str, Any]:
    """All that is known of a run. Never builds an environment."""
    meta, state, size = database.meta(), database.state(), database.size()
    episodes = [row for row in database.episodes(RECENT) if _is_number(row.get("return"))]  # any player may write there
    returns = [episode["return"] for episode in episodes if not episode.get("human")]
    human = [episode["return"] for episode in episodes if episode.get("human")]
    rows, evaluations = metrics.split(database.metrics(ROWS))
    spec = _spec(meta)
    errors = [row for row in database.errors() if all(isinstance(row.get(name), str) for name in ERROR)]
    workers = [dataclasses.asdict(worker) for worker in sorted(database.workers(), key=lambda worker: worker.id)]
    players = [worker for worker in workers if worker["role"] in diagnosis.PLAYS]
    steps = sum(worker["steps_per_second"] for worker in players)
    per_second, counters = steps / spec.length if spec else None, database.counters()
    counters |= {"unreadable": database.unreadable} if database.unreadable else {}
    facts = {
        "run": name,
        "experiment": printable(meta.get("experiment", "")) or None,
        "settings": _settings(meta),
        "run_id": state.run_id, "version": state.version, "update": state.update, "step": state.step,
        "inserted": state.inserted, "sampled": state.sampled,
        "sessions": size["sessions"], "bytes": size["bytes"], "capacity": state.capacity,
        "compression": spec.nbytes * size["sessions"] / size["bytes"] if spec and size["bytes"] else None,
        "reuse": state.sampled / state.inserted if state.inserted else None,
        "reuse_wanted": None if state.max_ahead is None else state.reuse,
        "mean_return": _mean(returns), "episodes": len(returns),
        "curve": [[row["step"], row["play/return"]] for row in rows if None not in map(row.get, ("step", "play/return"))],
        "workers": workers, "steps_per_second": steps, "sessions_per_second": per_second,
        "frames_per_second": sum(worker["steps_per_second"] * worker["frame_skip"] for worker in players),
        "waits": {worker["id"]: sentence for worker in workers if (sentence := diagnosis.wait(worker, per_second))},
        "human_sessions": counters.pop("human", 0), "human_return": _mean(human),
        "counters": counters, "metrics": rows[-1] if rows else {}, "evaluation": evaluations[-1] if evaluations else {},
        "errors": errors,
    }  # fmt: skip
    of_folder = f"nobody is at work on a server: this is what {meta['folder']}/ says" if "folder" in meta else ""
    return facts | {"bottleneck": of_folder or diagnosis.bottleneck(facts)}


def of_folder(folder: RunFolder) -> Database | None:
    """What a run's folder says, as a database to look at: of a run without a server, or that is over. None if it says nothing."""
    try:
        made, rows = folder.settings(), metrics.numbers(folder.rows())
    except TinyverseError:
        return None
    if not (made or rows):
        return None
    database, log = MemoryDatabase(), metrics.split(rows)[0]
    settings = json.dumps(made.get("settings", {}))
    database.create(
        {"format": FORMAT, "experiment": made.get("experiment", ""), "settings": settings, "folder": str(folder.path)}
    )
    for row in rows[-LOG_KEPT:]:
        database.log_metrics(row)
    newest = log[-1] if log else {}
    database.report(**{name: int(newest.get(name) or 0) for name in ("update", "step")})
    return database


def _spec(meta: Mapping[str, str]) -> SessionSpec | None:
    try:
        return SessionSpec.from_json(meta["spec"])
    except (KeyError, TinyverseError):
        return None


def _settings(meta: Mapping[str, str]) -> dict[str, Any]:
    try:
        return dict(experiment_and_settings(meta).get("settings", {}))
    except TinyverseError:  # of another release, or garbled; what works with the run says so
        return {}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
