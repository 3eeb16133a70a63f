"""Schema: everything that lies on a server for a run: the keys, and what the heartbeats and logs in them look like.

Heartbeats and rows of logs are JSON. Whoever may write to the server may have written anything there, and readers show it
on terminals and pages. So decoding gives what is expected and harmless, or None: known names, numbers within bounds,
short strings that command no terminal.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import printable
from tinyverse.database.base import STALE_AFTER, Worker

PREFIX = "tv:"  # every key begins with it
COMMANDS = (  # all that tinyverse sends; the local server's user may run these and no other
    "ping", "client|setname", "time", "multi", "exec", "watch", "unwatch",
    "xadd", "xrange", "xrevrange", "xread", "xlen", "xtrim",
    "hset", "hget", "hmget", "hgetall", "hdel", "hincrby",
    "get", "set", "unlink", "sadd", "srem", "smembers",
)  # fmt: skip
CLUSTER_COMMANDS = ("command", "cluster|slots")  # that redis-py sends besides to a Redis Cluster
COUNTER = "count:"  # what a counter's field in `tally` begins with
LONGEST_ROW = 256 << 10  # bytes of a row; a traceback of 10,000 letters takes at most half
MOST_NAMES = 1000  # in a row
MOST_ENVS = 100_000  # of one player
MOST = 2**53  # of a number in a heartbeat; larger ones are no whole numbers in a browser
LARGEST = 1e300  # of a number in a log: so that sums and means are finite
_WORKER = {name: type(value) for name, value in vars(Worker("", "")).items()}
_COUNTS = {name for name, kind in _WORKER.items() if kind in (int, float)} - {"version", "lag"}  # never below 0
_LINES = {"error": 1000, "traceback": 10_000}  # characters of what may have several lines; others have 200 in one


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

    def weights(self, version: int | str) -> str:
        """str: the weights of one version; never written twice."""
        return f"{self._prefix}w:{version}"


def encode_row(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), default=lambda value: value.item())  # NumPy's scalars become Python's


def decode_row(text: bytes) -> dict[str, Any] | None:
    """A row of a log: plain values by name; None where somebody wrote something else there. What cannot be shown is left out."""
    row = _object(text)
    if row is None or len(row) > MOST_NAMES:
        return None
    return {printable(name): _shown(name, value) for name, value in row.items() if _is_plain(value)}


def encode_heartbeat(worker: Worker, now: float) -> str:
    """A worker that is alive at `now`, seconds of the server's time."""
    return encode_row({**vars(worker), "at": now})


def decode_heartbeat(text: bytes, now: float) -> Worker | None:
    """The worker of a heartbeat, `seen` before `now`; None when it makes no sense. Passes over fields of other releases."""
    beat = _object(text) or {}
    at: Any = beat.get("at")
    fields = _fields({**beat, "seen": 0.0})
    if fields is None or not {"id", "role"} <= fields.keys() or not _is_number(at, MOST):
        return None
    if min(fields[name] for name in _COUNTS & fields.keys()) < 0 or fields.get("num_envs", 0) > MOST_ENVS:
        return None
    if at > now + STALE_AFTER:  # clocks differ by less
        return None
    return Worker(**{**fields, "seen": max(0.0, now - at)})


def to_number(text: float | str, kind: type[int] | type[float]) -> Any:
    """A number of State or a counter. Raises ValueError where it is none, or too large for 64 bits."""
    number = kind(text)
    if not abs(number) < (2**63 if kind is int else LARGEST):
        raise ValueError(f"{str(text)[:40]} is no number that a run can have")
    return number


def _object(text: bytes) -> dict[str, Any] | None:
    if len(text) > LONGEST_ROW:
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _fields(beat: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a heartbeat says of Worker's fields, fit to be shown; None where one of them is not of its kind."""
    known = {name: value for name, value in beat.items() if name in _WORKER}
    if not all(_is_like(value, _WORKER[name]) for name, value in known.items()):
        return None
    return {name: _shown(name, value) for name, value in known.items()}


def _is_like(value: Any, kind: type) -> bool:
    if kind is dict:
        shares = isinstance(value, dict) and len(value) <= 20
        return shares and all(_is_number(share, MOST) and share >= 0 for share in value.values())
    if kind is str:
        return isinstance(value, str)
    return _is_number(value, MOST) and (kind is float or type(value) is int)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, str)) or _is_number(value, LARGEST)


def _is_number(value: Any, most: float) -> bool:
    return type(value) in (int, float) and abs(value) <= most  # NaN is not


def _shown(name: str, value: Any) -> Any:
    """A value fit to be shown under this name."""
    if isinstance(value, dict):
        return {printable(word, 40): share for word, share in value.items()}
    if not isinstance(value, str):
        return value
    return printable(value, _LINES[name], keep="\n\t") if name in _LINES else printable(value)
