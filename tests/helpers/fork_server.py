"""The fork server of multiprocessing: imports what takes seconds once; processes that are forked from it have it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["tests.core.test_distributed", "tests.helpers.counting", "torch._dynamo"]
GROUP = "fork server"  # of pytest-xdist: the tests that use it run in one worker, which starts it once


def fork_server() -> ForkServerContext:
    """Its context. Whoever uses it first starts it, so all of its users preload the same."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
