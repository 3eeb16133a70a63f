"""BackgroundThread: one step, run again and again beside the main loop, which sees how it ended."""

import math
import threading
import time
from collections.abc import Callable

from tinyverse.core.errors import DatabaseLost


class BackgroundThread(threading.Thread):
    """Runs `step()` again and again until it is closed.

    A step that raises `DatabaseLost` is run again after a pause. Any other exception ends the thread and is kept in
    `failure`; its owner calls `raise_failure`.

    Args:
        step: one turn; it waits for its work itself, at most for a second or so.
        pause: seconds before a step that lost the database is run again.
        on_lost: called with the error each time the database is lost.
        unfinished: whether work is left that a closing thread still does.
    """

    def __init__(
        self, name: str, step: Callable[[], object], *, pause: float,
        on_lost: Callable[[DatabaseLost], object] = lambda error: None,
        unfinished: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        super().__init__(name=name, daemon=True)
        self.failure: Exception | None = None
        self.closing = threading.Event()
        self._step, self._pause, self._on_lost, self._unfinished = step, pause, on_lost, unfinished
        self._ends = math.inf  # on the monotonic clock: when a closing thread gives up

    def run(self) -> None:
        while not self.closing.is_set() or (self._unfinished() and time.monotonic() < self._ends):
            try:
                self._step()
            except DatabaseLost as error:
                self._on_lost(error)
                (time.sleep if self.closing.is_set() else self.closing.wait)(self._pause)
            except Exception as error:
                self.failure = error
                return

    def raise_failure(self) -> None:
        """Raises what ended the thread, if anything did."""
        if self.failure is not None:
            raise self.failure

    def close(self, seconds: float = 5.0) -> None:
        """Lets the thread finish its work, for at most so many seconds."""
        self._ends = time.monotonic() + seconds
        self.closing.set()
        if self.is_alive():
            self.join(seconds)
