"""Memory: a database within one process, for `local` and tests."""

import dataclasses
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from tinyverse.database import base
from tinyverse.database.base import Database, Episodes, State, Worker


class MemoryDatabase(Database):
    """One process: `local` and tests."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._last = 0  # ids keep growing, also over a clear
        self._reset(keep_weights=False)

    def _reset(self, keep_weights: bool) -> None:
        if not keep_weights:
            self._meta: dict[str, str] = {}
            self._weights: dict[int, bytes] = {}
            self._holder, self._lease_ends = "", 0.0
            self._state = State()
        kept = {name: getattr(self._state, name) for name in ("run_id", "version", *base.KEPT_BY_CLEAR)}
        self._state = State(**kept)
        self._sessions: deque[tuple[int, bytes]] = deque(maxlen=self._state.capacity)
        self._workers: dict[str, tuple[float, Worker]] = {}
        self._counters: dict[str, int] = {}
        self._episodes: deque[dict[str, Any]] = deque(maxlen=base.LOG_KEPT)
        self._metrics: deque[dict[str, Any]] = deque(maxlen=base.LOG_KEPT)
        self._errors: deque[dict[str, Any]] = deque(maxlen=base.ERRORS_KEPT)

    def create(self, meta: Mapping[str, str]) -> dict[str, str]:
        with self._changed:
            if not self._meta:
                self._meta = {**meta, "run_id": secrets.token_hex(8)}
                self._set(run_id=self._meta["run_id"])
            return dict(self._meta)

    def meta(self) -> dict[str, str]:
        with self._changed:
            return dict(self._meta)

    def state(self) -> State:
        with self._changed:
            return self._state

    def ask_stop(self) -> None:
        with self._changed:
            self._set(stop=self._state.stop + 1)

    def clear(self, keep_weights: bool = False) -> None:
        with self._changed:
            self._reset(keep_weights)

    def append(self, blobs: Sequence[bytes], *, worker: Worker | None = None, episodes: Episodes = ()) -> State:
        with self._changed:
            for blob in blobs:
                self._last += 1
                self._sessions.append((self._last, bytes(blob)))
            self._episodes.extend(dict(row) for row in episodes)
            self._set(inserted=self._state.inserted + len(blobs))
            return self.beat(worker) if worker else self._state

    def read(self, after: str, limit: int, wait: float = 0.0) -> tuple[list[tuple[str, bytes]], State]:
        last = int(after.partition("-")[0])
        with self._changed:
            self._changed.wait_for(lambda: self._sessions and self._sessions[-1][0] > last, wait)
            new = [(f"{key}-0", blob) for key, blob in self._sessions if key > last]
            return new[:limit], self._state

    def put_weights(
        self, blob: bytes, version: int, *, holder: str, update: int = 0, step: int = 0, run_id: str | None = None
    ) -> None:
        with self._changed:
            base.check_incarnation(run_id, self._state.run_id, version)
            base.check_fence(holder, version, self._held_by(), self._state.version)
            self._weights[version] = bytes(blob)
            for old in sorted(self._weights)[: -base.WEIGHTS_KEPT]:
                del self._weights[old]
            self._set(version=version, update=update, step=step)

    def get_weights(self, newer_than: int = -1, version: int | None = None) -> tuple[int, bytes] | None:
        with self._changed:
            wanted = self._state.version if version is None else version
            if wanted not in self._weights or (version is None and wanted <= newer_than):
                return None
            return wanted, self._weights[wanted]

    def acquire_lease(self, holder: str) -> bool:
        with self._changed:
            if self._held_by() not in ("", holder):
                return False
            self._holder, self._lease_ends = holder, time.monotonic() + base.LEASE_SECONDS
            return True

    def release_lease(self, holder: str) -> None:
        with self._changed:
            if self._holder == holder:
                self._holder = ""

    def beat(self, worker: Worker) -> State:
        with self._changed:
            self._workers[worker.id] = (time.monotonic(), dataclasses.replace(worker))
            return self._state

    def leave(self, worker_id: str) -> None:
        with self._changed:
            self._workers.pop(worker_id, None)

    def workers(self) -> list[Worker]:
        with self._changed:
            now = time.monotonic()
            seen = [dataclasses.replace(worker, seen=now - when) for when, worker in self._workers.values()]
            return [worker for worker in seen if worker.seen < base.STALE_AFTER]

    def report(self, **numbers: Any) -> None:
        base.check_report(numbers)
        with self._changed:
            self._set(**numbers)
            if self._sessions.maxlen != self._state.capacity:
                self._sessions = deque(self._sessions, self._state.capacity)

    def count(self, **numbers: int) -> None:
        with self._changed:
            for name, number in numbers.items():
                self._counters[name] = self._counters.get(name, 0) + number

    def counters(self) -> dict[str, int]:
        with self._changed:
            return dict(self._counters)

    def episodes(self, limit: int = 100) -> list[dict[str, Any]]:
        with self._changed:
            return list(self._episodes)[-limit:] if limit > 0 else []

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        with self._changed:
            self._metrics.append(dict(row))

    def metrics(self, limit: int = 100) -> list[dict[str, Any]]:
        with self._changed:
            return list(self._metrics)[-limit:] if limit > 0 else []

    def log_error(self, row: Mapping[str, Any]) -> None:
        with self._changed:
            self._errors.append(dict(row))

    def errors(self, limit: int = 10) -> list[dict[str, Any]]:
        with self._changed:
            return list(self._errors)[-limit:] if limit > 0 else []

    def size(self) -> dict[str, int]:
        with self._changed:
            return {"sessions": len(self._sessions), "bytes": sum(len(blob) for _, blob in self._sessions)}

    def _held_by(self) -> str:
        return self._holder if time.monotonic() < self._lease_ends else ""

    def _set(self, **numbers: Any) -> None:
        self._state = dataclasses.replace(self._state, **numbers)
        self._changed.notify_all()
