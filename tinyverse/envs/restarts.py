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

RUNNING = 3  # failures in a row, of every part, after which the error is raised
SOUND_STEPS = 1000  # steps, or an episode's own end, after which an earlier failure is forgotten
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a second and any later rebuilding
LONGEST_TEXT = 4000  # characters of a traceback that are kept


class RestartPolicy:
    """Counts the failures of a pool's parts and says when each may be built anew.

    Attributes:
        faults: how many there were.
        fault: the newest one's traceback.
    """

    def __init__(self, parts: int, part: str) -> None:
        self.faults, self.fault = 0, ""
        self._part = part
        self._running = [0] * parts
        self._built = [0] * parts  # the step at which it was built
        self._due = [0.0] * parts

    def failed(self, part: int, error: Exception, *, step: int, final: bool = False) -> None:
        """Notes a failure at the pool's `step`; raises the error when every part has failed too often.

        Args:
            final: it will not get better by being built anew once or twice more.
        """
        if step - self._built[part] >= SOUND_STEPS:
            self._running[part] = 0
        self._running[part] = max(self._running[part] + 1, RUNNING if final else 0)
        self.faults += 1
        self.fault = "".join(traceback.format_exception(error))[-LONGEST_TEXT:].rstrip()
        if min(self._running) >= RUNNING:
            raise error
        running = self._running[part]
        pause = 0.0 if running == 1 else min(FIRST_PAUSE * 2.0 ** (running - 2), LONGEST_PAUSE)
        self._due[part] = time.monotonic() + pause
        logger.warning(
            "%s %d failed (%d running) and is built anew in %.1f s:\n%s", self._part, part, running, pause, self.fault
        )

    def rebuilt(self, part: int, *, step: int) -> None:
        """The part was built anew before the pool's `step`."""
        self._built[part] = step

    def sound(self, part: int) -> None:
        """An episode of the part has come to its own end."""
        self._running[part] = 0

    def running(self, part: int) -> int:
        """How often it has failed in a row."""
        return self._running[part]

    def seconds(self, part: int) -> float:
        """Until the part may be built anew; 0 when it may."""
        return max(0.0, self._due[part] - time.monotonic())

    def wait(self, parts: list[int]) -> None:
        """Sleeps until one of these parts may be built anew: for when none is left to step."""
        time.sleep(min(self.seconds(part) for part in parts))
