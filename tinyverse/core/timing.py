"""Timing: stage timers, rates and tickers for the loops of players and trainers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Measures which share of the wall time each stage of a loop takes.

    >>> stages = Stages()
    >>> with stages("act"):
    ...     pass
    >>> sorted(stages.take())
    ['act']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Returns the share of wall time (0 … 1) of each stage since the last `take`, and starts again at 0."""
        now = time.monotonic()
        wall = max(now - self._began, 1e-9)
        shares = {name: seconds / wall for name, seconds in self._seconds.items()}
        self._seconds, self._began = {}, now
        return shares


class Rate:
    """Counts events per second over a sliding window of so many seconds."""

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._marks = [(time.monotonic(), 0)]
        self.total = 0

    def add(self, count: int) -> None:
        now = time.monotonic()
        self.total += count
        self._marks.append((now, self.total))
        while len(self._marks) > 2 and self._marks[1][0] < now - self._window:
            self._marks.pop(0)

    def per_second(self) -> float:
        began, total = self._marks[0]
        return (self.total - total) / max(time.monotonic() - began, 1e-3)


class Waiting:
    """Records what a worker waits for and since when; heartbeats carry both."""

    def __init__(self) -> None:
        self.reason = ""
        self._since = time.monotonic()

    def set(self, reason: str) -> None:
        """Sets the reason, "" where the worker does not wait. The time runs on from one reason to the next."""
        if bool(reason) != bool(self.reason):
            self._since = time.monotonic()
        self.reason = reason

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since if self.reason else 0.0


class Ticker:
    """Becomes due every `seconds`; the first time at once, or with `later` after `seconds`."""

    def __init__(self, seconds: float, *, later: bool = False) -> None:
        self.seconds = seconds
        self._next = time.monotonic() + (seconds if later else 0.0)

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self.seconds
        return True
