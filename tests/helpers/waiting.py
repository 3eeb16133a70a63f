"""Waits for something to become true. Imports no torch: processes that pools spawn import it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The condition's value once it is true; fails after `seconds`."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, f"waited {seconds} s in vain"
        time.sleep(0.005)
    return value
