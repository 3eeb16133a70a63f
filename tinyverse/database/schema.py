"""Schema: everything that lies on a server for a run: the keys, and what the heartbeats and logs in them look like.

Heartbeats and rows of logs are JSON. Whoever may write to the server may have written anything there, and readers show it
on terminals and pages. So every row is decoded here, and what comes out is safe to show and to compute with.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import clean
from tinyverse.database.base import State, Worker, is_session_id

PREFIX = "tv:"  # every key begins with it
COMMANDS = (  # all that tinyverse sends; the local server's user may run these and no other
    "ping", "client|setname", "time", "multi", "exec", "watch", "unwatch",
    "xadd", "xrange", "xrevrange", "xread", "xlen", "xtrim",
    "hset", "hget", "hmget", "hgetall", "hdel", "hincrby",
    "get", "set", "unlink", "sadd", "srem", "smembers",
)  # fmt: skip
CLUSTER_COMMANDS = ("command", "cluster|slots")  # that redis-py sends besides to a Redis Cluster
COUNTER = "count:"  # what a counter's field in `tally` begins with
ROLES = ("play", "human", "train", "eval")
ROW_BYTES = 64 << 10  # a larger row is dropped unread
LONG, SHORT, META = 10_000, 200, 1 << 20  # characters of a string, of a name, of a text of the run config
ENTRIES = 1000  # of a dict or list
MOST_ENVS = 1_000_000  # of a worker
LARGEST = 1e38  # number; float32 holds no larger one
AHEAD = 5.0  # seconds that a heartbeat may be ahead of the reader's idea of the server's time
_WORKER = {name: type(value) for name, value in vars(Worker("", "")).items()}
_LEFT_OUT = object()


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
    """A row of a log; None where somebody wrote something else there.

    What it returns is safe to show and to compute with: names and strings are cut and have no control characters, numbers
    are finite and at most LARGEST, lists and dicts hold such values alone. Other values are left out.
    """
    if len(text) > ROW_BYTES:
        return None
    try:
        row = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return _safe_dict(row) if isinstance(row, dict) else None


def encode_heartbeat(worker: Worker, now: float) -> str:
    """A worker that is alive at `now`, seconds of the server's time."""
    return encode_row({**vars(worker), "at": now})


def decode_heartbeat(text: bytes, now: float) -> Worker | None:
    """The worker of a heartbeat, `seen` before `now`; None when it makes no sense. Passes over fields of other releases."""
    beat = decode_row(text) or {}
    at: Any = beat.get("at")
    if type(at) not in (int, float) or at > now + AHEAD:
        return None
    try:
        worker = Worker(**{name: beat[name] for name in beat if name in _WORKER})
    except TypeError:
        return None
    if (
        worker.role not in ROLES
        or not 0 <= worker.num_envs <= MOST_ENVS
        or not all(_is_like(getattr(worker, name), kind) for name, kind in _WORKER.items())
    ):
        return None
    worker.seen = max(0.0, now - at)
    return worker


def decode_meta(stored: Mapping[bytes, bytes]) -> dict[str, str]:
    """What `create` stored."""
    return {clean(_text(name), SHORT): clean(_text(text), META) for name, text in stored.items()}


def decode_state(stored: Mapping[str, bytes | None]) -> State:
    """State by the names of its fields. What is missing, or no such number, has State's default."""
    known = {}
    for name, text in stored.items():
        with contextlib.suppress(ValueError, OverflowError):
            if text is not None:
                known[name] = _STATE[name](text.decode())
    return State(**known)


def decode_counters(tally: Mapping[bytes, bytes]) -> dict[str, int]:
    """What `count` counted."""
    found = {}
    for name, number in itertools.islice(tally.items(), ENTRIES):
        with contextlib.suppress(ValueError):
            if name.startswith(COUNTER.encode()):
                found[clean(_text(name).removeprefix(COUNTER), SHORT)] = _whole(number.decode())
    return found


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace")


def _whole(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number has too many digits")
    return int(digits)


def _number(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST:
        raise ValueError("a number is NaN or too large")
    return number


def _session_id(text: str) -> str:
    if not is_session_id(text):
        raise ValueError("no id of a session")
    return text


_STATE: dict[str, Callable[[str], Any]] = {
    "run_id": lambda text: clean(text, SHORT), "version": _whole, "inserted": _whole,
    "update": _whole, "step": _whole, "sampled": _number, "reuse": _number, "max_ahead": lambda text: _number(text) if text else None,
    "capacity": _whole, "stop": _whole, "cursor": _session_id,
}  # fmt: skip
STAT = [name for name in _STATE if name not in ("run_id", "version", "inserted")]  # fields of the hash `stat`


def _safe_dict(row: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    safe = ((clean(name, SHORT), _safe(value, depth)) for name, value in itertools.islice(row.items(), ENTRIES))
    return {name: value for name, value in safe if value is not _LEFT_OUT}


def _safe(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return clean(value, LONG, lines=True)
    if isinstance(value, (int, float)):  # a bool too
        return value if abs(value) <= LARGEST else _LEFT_OUT
    if value is None:
        return None
    if depth > 1:
        return _LEFT_OUT
    if isinstance(value, dict):
        return _safe_dict(value, depth + 1)
    return [part for part in (_safe(part, depth + 1) for part in value[:ENTRIES]) if part is not _LEFT_OUT]


def _is_like(value: Any, kind: type) -> bool:
    """Whether a value that came from a network is what a field of Worker holds."""
    if kind is dict:
        return isinstance(value, dict) and all(_is_like(share, float) for share in value.values())
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind
