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
    # whoever started us ignoring a signal (nohup, a shell's background) wants it ignored
    heard = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in heard} if in_main else {}
    _handled.update(before)
    try:
        yield lambda: asked.is_set() or (parent is not None and os.getppid() != int(parent))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
            _handled.pop(number, None)


_handled: dict[int, Any] = {}  # signal -> its handler before ours
_here = threading.local()  # mask: this thread's signals held back before a fork


def _before_fork() -> None:
    """Holds signals back, so that none reaches a child while it has our handlers still."""
    _here.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(_handled))


def _in_child() -> None:
    """A process that an environment forks ends at a signal as any other; with our handlers it would go on for ever."""
    for number, handler in _handled.items():
        signal.signal(number, handler)
    _handled.clear()
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _here.mask)


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before_fork, after_in_child=_in_child, after_in_parent=_after_fork)
