"""Status: all that is known of a run, as one dict with stable keys: what everyone does, what each waits for, how learning goes.

`info --json` prints it. Panel, dashboard and diagnosis are made from it.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from tinyverse.database.base import Database
from tinyverse.monitoring import diagnosis, metrics

RECENT = 100  # episodes in a mean return
ROWS = 300  # of the log, among which the newest evaluation is looked for
ERROR = ("when", "role", "host", "error", "traceback")  # of a row, by `database.base.log_error`


def gather(database: Database, name: str) -> dict[str, Any]:
    """All that is known of a run. Never builds an environment."""
    meta, state, size = database.meta(), database.state(), database.size()
    episodes = [row for row in database.episodes(RECENT) if _is_number(row.get("return"))]  # any player may write there
    returns = [episode["return"] for episode in episodes if not episode.get("human")]
    human = [episode["return"] for episode in episodes if episode.get("human")]
    rows, evaluations = metrics.split(database.metrics(ROWS))
    counters = database.counters()
    facts = {
        "run": name,
        "experiment": meta.get("experiment"),
        "settings": json.loads(meta["settings"]) if meta else {},
        "run_id": state.run_id, "version": state.version, "update": state.update, "step": state.step,
        "inserted": state.inserted, "delivered": state.delivered,
        "sessions": size["sessions"], "bytes": size["bytes"], "capacity": state.capacity,
        "reuse": state.delivered / state.inserted if state.inserted else None,
        "mean_return": _mean(returns), "episodes": len(returns),
        "workers": [dataclasses.asdict(worker) for worker in sorted(database.workers(), key=lambda worker: worker.id)],
        "human_sessions": counters.pop("human", 0), "human_return": _mean(human),
        "counters": counters, "metrics": rows[-1] if rows else {}, "evaluation": evaluations[-1] if evaluations else {},
        "errors": [row for row in database.errors() if all(isinstance(row.get(name), str) for name in ERROR)],
    }  # fmt: skip
    return facts | diagnosis.more(facts, state, meta, rows)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
