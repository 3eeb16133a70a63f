"""Restarts of environments that fail, so that one failure in many steps does not end a player.

A pool consists of parts: environments, or processes of environments. A part that fails is closed and restarted: at once
the first time, then after 0.5, 1, 2 … 30 seconds. Its episode is truncated, and the other parts go on. When every part
has failed three times in a row, the last error is raised.
"""

import logging
import time
import traceback
from collections.abc import Iterable

logger = logging.getLogger(__name__)

MAX_FAILURES = 3  # failures in a row of every part before the error is raised
HEALTHY_STEPS = 1000  # without a failure, after which earlier ones are forgotten; an episode's own end does the same
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before the second restart, and at most before any
MAX_TRACEBACK = 4000  # characters


class RestartPolicy:
    """Counts the failures of a pool's parts and decides when each may restart.

    Args:
        parts: how many there are.
        part: what one is called in messages.
        restart: False: the first failure is raised.
    Attributes:
        steps: the pool's steps so far, which the pool counts.
        faults: number of failures.
        fault: the newest traceback.
    """

    def __init__(self, parts: int, part: str, *, restart: bool = True) -> None:
        self.steps, self.faults, self.fault = 0, 0, ""
        self._part, self._limit = part, MAX_FAILURES if restart else 0
        self._failures = [0] * parts
        self._started_at = [0] * parts  # the pool's step of the last restart
        self._due = [0.0] * parts

    def failed(self, part: int, error: Exception, *, final: bool = False) -> None:
        """Records a failure. Raises `error` if every part has failed too often.

        Args:
            final: a restart would not help, so this counts as `MAX_FAILURES` failures.
        """
        if self.steps - self._started_at[part] >= HEALTHY_STEPS:
            self._failures[part] = 0
        self._failures[part] = max(self._failures[part] + 1, MAX_FAILURES if final else 0)
        self.faults += 1
        self.fault = "".join(traceback.format_exception(error))[-MAX_TRACEBACK:].rstrip()
        if min(self._failures) >= self._limit:
            raise error
        failures = self._failures[part]
        delay = 0.0 if failures == 1 else min(FIRST_DELAY * 2.0 ** (failures - 2), LONGEST_DELAY)
        self._due[part] = time.monotonic() + delay
        logger.warning(
            "%s %d failed (%d in a row) and restarts in %.1f s:\n%s", self._part, part, failures, delay, self.fault
        )

    def restarted(self, part: int) -> None:
        """Records that the part restarted before the pool's present step."""
        self._started_at[part] = self.steps

    def recovered(self, part: int) -> None:
        """Records that an episode of the part came to its own end."""
        self._failures[part] = 0

    def failures(self, part: int) -> int:
        """Returns how often the part has failed in a row."""
        return self._failures[part]

    def delay(self, part: int) -> float:
        """Returns the seconds until the part may restart; 0 if it may now."""
        return max(0.0, self._due[part] - time.monotonic())

    def wait(self, parts: Iterable[int]) -> None:
        """Sleeps until one of these parts may restart; for a pool in which no part is left to step."""
        time.sleep(min(self.delay(part) for part in parts))
