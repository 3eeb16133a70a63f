"""Rows: heartbeats and lines of logs as JSON. Whoever may write to the server may have written anything there, and what
is read is shown on terminals and pages: so it is what it should be, and harmless, or None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from tinyverse.database.base import Worker

_WORKER = {name: type(value) for name, value in vars(Worker("", "")).items()}


def encode_row(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), default=lambda value: value.item())  # NumPy's scalars become Python's


def decode_row(text: bytes) -> dict[str, Any] | None:
    """A row of a log; None where somebody wrote something else there."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return {name: _harmless(value) if isinstance(value, str) else value for name, value in row.items()}


def encode_heartbeat(worker: Worker, now: float) -> str:
    """A worker that is alive at `now`, seconds of the server's time."""
    return encode_row({**vars(worker), "at": now})


def decode_heartbeat(text: bytes, now: float) -> Worker | None:
    """The worker of a heartbeat, `seen` so many seconds before `now`; None when it makes no sense. Fields of other
    releases are passed over."""
    try:
        beat = json.loads(text)
        worker = Worker(**{name: beat[name] for name in beat if name in _WORKER})
        worker.seen = max(0.0, now - float(beat["at"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not all(_is_like(getattr(worker, name), kind) for name, kind in _WORKER.items()):
        return None
    for name, kind in _WORKER.items():
        if kind is str:
            setattr(worker, name, _harmless(getattr(worker, name)))
    return worker


def _is_like(value: Any, kind: type) -> bool:
    """Whether a value that came from a network is what a field of Worker holds: then it can be shown."""
    if kind is dict:
        return isinstance(value, dict) and all(_is_like(share, float) for share in value.values())
    if kind is str:
        return isinstance(value, str)
    return type(value) in (int, float) and math.isfinite(value)


def _harmless(text: str) -> str:
    """Without what would command a terminal that shows it."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)
