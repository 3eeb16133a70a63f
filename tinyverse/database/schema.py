"""Keys: everything that lies on a server for a run, on one page; `RedisDatabase` writes and reads it."""

from __future__ import annotations

import re

from tinyverse.core.errors import SettingsError
from tinyverse.database.server import PREFIX

COUNTER = "count:"  # what a counter's field in `tally` begins with


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
        self.meta = f"{self._prefix}meta"  # hash: what `create` stored, and the epoch
        self.sessions = f"{self._prefix}sessions"  # stream: one entry a session
        self.current = f"{self._prefix}w:cur"  # hash: version, update, step; xxh3:<v> of each version kept
        self.heartbeats = f"{self._prefix}hb"  # hash: worker id -> JSON
        self.lease = f"{self._prefix}lease"  # str with a time to live: who publishes
        self.stat = f"{self._prefix}stat"  # hash: State's numbers and position, as the trainer reports them
        self.tally = f"{self._prefix}tally"  # hash: inserted, bytes, the counters: what players may count up
        self.episodes = f"{self._prefix}episodes"  # stream of JSON
        self.metrics = f"{self._prefix}metrics"  # stream of JSON
        self.errors = f"{self._prefix}errors"  # stream of JSON

    def weights(self, version: int) -> str:
        """str: the weights of one version; never written twice."""
        return f"{self._prefix}w:{version}"
