"""Signals: how a worker is asked to stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields `should_stop`: true after SIGINT, SIGTERM, SIGHUP or SIGUSR1 (on Windows after SIGINT or SIGBREAK), or when
    the parent that asked to be watched is gone. A second SIGINT ends at once."""
    asked = threading.Event()
    parent = os.environ.get("TINYVERSE_PARENT")

    def handle(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in wanted} if in_main else {}
    try:
        yield lambda: asked.is_set() or (parent is not None and os.getppid() != int(parent))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
