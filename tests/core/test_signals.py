"""Signals: what was ignored stays ignored, and children that an environment forks end as any process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tinyverse.core.signals import stop_on_signals

ASKS = """
import os, signal, sys
from tinyverse.core.signals import stop_on_signals
with stop_on_signals() as should_stop:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        print(should_stop())
"""


@pytest.mark.parametrize(
    ("ignored", "heard"), [(signal.SIGHUP, [False, True, True]), (signal.SIGINT, [True, True, True])]
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(ignored: signal.Signals, heard: list[bool]) -> None:
    start = (
        f"import os, signal, sys; signal.signal({int(ignored)}, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-c", start, sys.executable, "-c", ASKS]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(answer) for answer in heard]


def test_a_child_forked_meanwhile_ends_at_sigterm_and_the_parent_hears_it_as_before() -> None:
    with stop_on_signals() as should_stop:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        child.terminate()
        child.join(30)
        assert child.exitcode == -signal.SIGTERM and not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
