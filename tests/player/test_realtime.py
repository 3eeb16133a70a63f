"""An environment with a clock of its own never waits: not for a frozen server, not for weights."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.helpers.counting import CountingEnv
from tests.helpers.people import HOLDER, Beside, a_player, a_run, a_spec, publish, until
from tinyverse.core.run_config import run_config
from tinyverse.database.server import private_server
from tinyverse.envs import SerialPool
from tinyverse.player.loop import play
from tinyverse.player.uploader import WAITING_ROLLOUTS

FROZEN = 5.0  # seconds


class Clock(CountingEnv):
    """Ticks 100 times a second; notes when it was acted in."""

    def __init__(self) -> None:
        super().__init__()
        self.acted: list[float] = []

    def step(self, action: Any) -> Any:
        self.acted.append(time.perf_counter())
        time.sleep(0.01)
        return super().step(action)


@pytest.mark.faults
def test_a_frozen_server_is_not_felt_and_what_it_costs_is_counted() -> None:
    with private_server() as server:
        database = a_run(server.url)
        database.create(run_config("counting", {}, a_spec()))
        assert database.acquire_lease(HOLDER)
        publish(database, 0)
        clock = Clock()
        player, uploader = a_player(database, pool=SerialPool(lambda: clock, 1, realtime=True))
        uploader.start()
        played: list[int] = []

        def run(should_stop: Any) -> None:
            played.append(play(player, uploader, realtime=True, should_stop=should_stop))

        thaw = threading.Timer(FROZEN, os.kill, (server.pid, signal.SIGCONT))
        with Beside(run) as playing:
            until(lambda: database.state().inserted > 5)
            os.kill(server.pid, signal.SIGSTOP)
            thaw.start()
            began = time.perf_counter()
            thaw.join()
            frozen = (began, time.perf_counter())
            steps = player.rate.total
            until(lambda: player.rate.total > steps + 100)

            playing.stop.set()
        uploader.close()
        acted = np.array(clock.acted)
        during = acted[(acted > frozen[0]) & (acted < frozen[1])]
        assert len(during) > 0.7 * 100 * FROZEN
        assert np.diff(during).max() < 0.25, "it waited for the server"  # seconds; two shared cores
        inserted, dropped = database.state().inserted, uploader.worker.dropped
        assert dropped > 10 * WAITING_ROLLOUTS
        assert inserted + dropped == played[0]
        database.close()
