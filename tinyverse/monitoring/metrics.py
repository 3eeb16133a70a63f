"""Metrics: the rows that trainers and evaluators log, and numbers in words."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]  # numbers by name, as metrics.jsonl, the database and the writers have them
BARS = "▁▂▃▄▅▆▇█"
LARGEST = 1e300  # of a number that is drawn or averaged
CURVE = 40  # points of the sparkline, at most


def split(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of trainers and those of evaluations, both in their order, their numbers only."""
    rows = numbers(rows)
    log = [row for row in rows if "eval/return" not in row]
    return log, [row for row in rows if row.get("eval/return") is not None]


def numbers(rows: Iterable[Any]) -> list[Row]:
    """The numbers in rows that anybody may have written; None for one that is not finite."""
    return [
        {name: _bounded(value) for name, value in row.items() if value is None or type(value) in (int, float)}
        for row in rows
        if isinstance(row, dict)
    ]


def _bounded(value: float | None) -> float | None:
    return value if value is None or abs(value) <= LARGEST else None


def growing(rows: Sequence[Row], name: str = "step") -> list[Row]:
    """The rows without those that a trainer logged between its last checkpoint and a kill, and whose steps it made again.

    Every row has the number `name`, which only grows in the rows that stay.
    """
    kept: list[Row] = []
    for row in reversed(rows):
        if not kept or row[name] <= kept[-1][name]:
            kept.append(row)
    return kept[::-1]


def sparkline(values: Sequence[float], width: int = CURVE) -> str:
    """A curve in one line; of many values, means of neighbours.

    >>> sparkline([0, 1, 2, 3])
    '▁▃▆█'
    """
    means = np.array([part.mean() for part in np.array_split(values, min(width, len(values)))])
    heights = (means - means.min()) / (np.ptp(means) or 1.0)
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


def size(count: float) -> str:
    """Bytes in words.

    >>> size(2_345_678)
    '2.3 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(3725)
    '1h02m'
    """
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    return f"{minutes}m{int(seconds % 60):02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
