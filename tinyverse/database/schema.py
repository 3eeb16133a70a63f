"""Schema: everything that lies on a server for a run: the keys, and what the heartbeats and logs in them look like.

Heartbeats and rows of logs are JSON. Whoever may write to the server may have written anything there, and readers show it
on terminals and pages. So decoding gives what is expected and harmless, or None.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from tinyverse.core.errors import SettingsError
from tinyverse.database.base import Worker

PREFIX = "tv:"  # every key begins with it
COMMANDS = (  # all that tinyverse sends; the local server's user may run these and no other
    "ping", "client|setname", "time", "multi", "exec", "watch", "unwatch",
    "xadd", "xrange", "xrevrange", "xread", "xlen", "xtrim",
    "hset", "hget", "hmget", "hgetall", "hdel", "hincrby",
    "get", "set", "unlink", "sadd", "srem", "smembers",
)  # fmt: skip
CLUSTER_COMMANDS = ("command", "cluster|slots")  # that redis-py sends besides to a Redis Cluster
COUNTER = "count:"  # what a counter's field in `tally` begins with
_WORKER = {name: type(value) for name, value in vars(Worker("", "")).items()}


class Keys:
    """The keys of a run, spelled here and nowhere else. `{run}` in braces keeps a run on one slot of a cluster.

    Raises:
        SettingsError: the run's name has other characters than [A-Za-z0-9._-].
    """

    RUNS = f"{PREFIX}runs"  # set: the names of all runs

    def __init__(self, run: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", run):
            raise SettingsError(
                f"The run's name {run!r} may have letters, digits, '.', '_' and '-' only. Choose another with --name."
            )
        self._prefix = f"{PREFIX}{{{run}}}:"
        self.meta = f"{self._prefix}meta"  # hash: what `create` stored, and the run_id
        self.sessions = f"{self._prefix}sessions"  # stream: one entry a session
        self.current = f"{self._prefix}w:cur"  # hash: version, update, step; xxh3:<v> of each version kept
        self.heartbeats = f"{self._prefix}hb"  # hash: worker id -> JSON
        self.lease = f"{self._prefix}lease"  # str with a time to live: who publishes
        self.stat = f"{self._prefix}stat"  # hash: State's numbers and cursor, as the trainer reports them
        self.tally = f"{self._prefix}tally"  # hash: inserted, bytes, the counters: what players may count up
        self.episodes = f"{self._prefix}episodes"  # stream of JSON
        self.metrics = f"{self._prefix}metrics"  # stream of JSON
        self.errors = f"{self._prefix}errors"  # stream of JSON

    @property
    def all(self) -> list[str]:
        """Every key but those of weights."""
        return [key for name, key in vars(self).items() if name != "_prefix"]

    def weights(self, version: int) -> str:
        """str: the weights of one version; never written twice."""
        return f"{self._prefix}w:{version}"


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
    """The worker of a heartbeat, `seen` before `now`; None when it makes no sense. Passes over fields of other releases."""
    beat = decode_row(text) or {}
    try:
        worker = Worker(**{name: beat[name] for name in beat if name in _WORKER})
        worker.seen = max(0.0, now - float(beat["at"]))
    except (ValueError, TypeError, KeyError):
        return None
    return worker if all(_is_like(getattr(worker, name), kind) for name, kind in _WORKER.items()) else None


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
