"""Mending: what becomes of a game that fails, so that one bad game in a thousand steps does not end a player.

A part of a pool (a game, or a process of games) that fails is closed and built anew: at once the first time, then after
0.5, 1, 2 … 30 seconds. Its episode ends as truncated, the others go on. Once every part has failed three times running
it is no accident, and the last error is raised.
"""

from __future__ import annotations

import logging
import time
import traceback

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # failures in a row, of every part, after which the error is raised
HEALTHY_STEPS = 1000  # steps, or an episode's own end, after which an earlier failure is forgotten
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before a second and any later rebuilding
MAX_TRACEBACK = 4000  # characters of a traceback that are kept


class RestartPolicy:
    """Counts the failures of a pool's parts and says when each may be built anew.

    Attributes:
        faults: how many there were.
        fault: the newest one's traceback.
    """

    def __init__(self, parts: int, part: str) -> None:
        self.faults, self.fault = 0, ""
        self._part = part
        self._failures = [0] * parts
        self._started_at = [0] * parts  # the step at which it was built
        self._due = [0.0] * parts

    def failed(self, part: int, error: Exception, *, step: int, final: bool = False) -> None:
        """Notes a failure at the pool's `step`; raises the error when every part has failed too often.

        Args:
            final: it will not get better by being built anew once or twice more.
        """
        if step - self._started_at[part] >= HEALTHY_STEPS:
            self._failures[part] = 0
        self._failures[part] = max(self._failures[part] + 1, MAX_FAILURES if final else 0)
        self.faults += 1
        self.fault = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:].rstrip()
        if min(self._failures) >= MAX_FAILURES:
            raise error
        failures = self._failures[part]
        delay = 0.0 if failures == 1 else min(FIRST_DELAY * 2.0 ** (failures - 2), LONGEST_DELAY)
        self._due[part] = time.monotonic() + delay
        logger.warning(
            "%s %d failed (%d in a row) and restarts in %.1f s:\n%s", self._part, part, failures, delay, self.fault
        )

    def restarted(self, part: int, *, step: int) -> None:
        """The part was built anew before the pool's `step`."""
        self._started_at[part] = step

    def recovered(self, part: int) -> None:
        """An episode of the part has come to its own end."""
        self._failures[part] = 0

    def failures(self, part: int) -> int:
        """How often it has failed in a row."""
        return self._failures[part]

    def delay(self, part: int) -> float:
        """Until the part may be built anew; 0 when it may."""
        return max(0.0, self._due[part] - time.monotonic())

    def wait(self, parts: list[int]) -> None:
        """Sleeps until one of these parts may be built anew: for when none is left to step."""
        time.sleep(min(self.delay(part) for part in parts))
