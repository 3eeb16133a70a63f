"""What docs/promises.md promises, with real processes, real signals and a real server: broken here in every way."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from chaos import Breakable, Proxy
from counting import reward_of
from database_contract import DatabaseContract
from people import LENGTH, Beside, a_player, a_spec, a_trainer, until
from test_commands import Place
from test_commands import until as long_until
from test_player import HOLDER, publish
from test_trainer import some_sessions

from tinyverse import redis_server
from tinyverse.database import BEGINNING, Worker
from tinyverse.errors import DatabaseError, DatabaseLost, TinyverseError
from tinyverse.loop import train
from tinyverse.player import play
from tinyverse.redis_database import Keys, RedisDatabase
from tinyverse.redis_server import connect
from tinyverse.replay import Flow
from tinyverse.run import agreement
from tinyverse.trainer import Trainer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
CHECKOUT = Path(__file__).parent.parent
IMPATIENT = 1.2  # seconds until the tests' clients give a server up

torch.set_num_threads(1)


@pytest.fixture
def server() -> Iterator[Breakable]:
    with Breakable() as server:
        yield server


@pytest.fixture
def place() -> Iterator[Place]:
    from test_commands import place

    yield from place.__wrapped__()  # type: ignore[attr-defined]


class Team:
    """A player and a trainer of the counting game, at work in threads; what is seen of them is checked all the time."""

    def __init__(self, url: str, run: str = "team", **flow: Any) -> None:
        self.database = RedisDatabase(url, run, timeout=IMPATIENT)
        self.trainer: Trainer = a_trainer(
            self.database, flow=Flow(**{"batch": 2, "buffer_size": 50, **flow}), publish_every=2
        )
        self.trainer.join()
        self.player, self.courier = a_player(RedisDatabase(url, run, timeout=IMPATIENT), games=2)

    def __enter__(self) -> Team:
        self.courier.start()
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(Beside(lambda should_stop: play(self.player, self.courier, should_stop=should_stop)))
        self._stack.enter_context(Beside(lambda should_stop: train(self.trainer, should_stop=should_stop)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self.courier.close()
        if error[0] is None:
            self.check()

    def goes_on(self, seconds: float = 5.0) -> None:
        """Within so many seconds the player plays, the trainer learns from it, publishes, and the player loads it."""
        ends, trainer, player = time.monotonic() + seconds, self.trainer, self.player
        version, steps = trainer.version, player.rate.total
        for done in (
            lambda: player.rate.total > steps,
            lambda: trainer.state.version > version,
            lambda: player.version > version,
        ):
            until(done, max(0.1, ends - time.monotonic()))

    def check(self) -> None:
        """Every session that was learned from was whole, and came once."""
        opened = set()
        for batch in self.trainer.learner.batches:
            seen, counts = batch.observations, batch.extras["count"]
            assert torch.equal(batch.extras["saw"], seen[:-1].float())
            alive = batch.alive
            expected = reward_of(seen[:-1, :, 0], seen[:-1, :, 1], batch.actions)
            assert torch.equal(batch.rewards[alive], expected[alive].float())
            assert torch.equal(counts[alive].long(), seen[:-1, :, 1][alive].long())
            for row in seen[0].tolist():
                assert tuple(row) not in opened, "learned from twice"
                opened.add(tuple(row))
        assert opened
        assert set(self.trainer.rejected) <= {"it came twice"}, self.trainer.rejected


# -- the server is lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_back", ["empty", "as it was", "as it was long ago"])
def test_within_5_seconds_of_the_servers_return_all_goes_on(server: Breakable, comes_back: str) -> None:
    with Team(server.url) as team:
        team.goes_on()
        if comes_back == "as it was long ago":
            server.save()
            team.goes_on()
            team.goes_on()
        epoch, version = team.trainer.meta["epoch"], team.trainer.state.version
        if comes_back == "as it was":
            server.save()
        server.kill()
        time.sleep(1.0)
        if comes_back == "empty":
            server.forget()
        server.start()
        team.goes_on()
        state = team.database.state()
        assert (state.epoch == epoch) == (comes_back != "empty")
        assert state.version > version


def test_a_frozen_server_costs_time_only(server: Breakable) -> None:
    with Team(server.url) as team:
        team.goes_on()
        server.freeze()
        time.sleep(3 * IMPATIENT)
        server.thaw()
        team.goes_on()


def test_a_trainer_publishes_again_what_an_older_copy_of_the_server_has_not(server: Breakable) -> None:
    """Also when there is nothing to learn from."""
    database = RedisDatabase(server.url, "old", timeout=IMPATIENT)
    trainer = a_trainer(database)
    trainer.join()
    server.save()
    with Beside(lambda should_stop: train(trainer, should_stop=should_stop)):
        trainer.must_publish = True
        until(lambda: trainer.state.version == 1)
        server.kill()
        server.start()
        until(lambda: database.state().version > 1, 5.0)


def test_a_server_that_is_gone_for_long_costs_a_player_nothing(server: Breakable) -> None:
    database = RedisDatabase(server.url, "long", timeout=IMPATIENT)
    database.create(agreement("counting", {}, a_spec()))
    assert database.acquire_lease(HOLDER)
    database.report(allowance=None)
    publish(database, 0)
    player, courier = a_player(RedisDatabase(server.url, "long", timeout=IMPATIENT))
    courier.start()
    with Beside(lambda should_stop: play(player, courier, should_stop=should_stop)) as playing:
        until(lambda: courier.state.inserted > 10)
        server.freeze()
        until(lambda: "database" in courier.waiting.reason, 10)
        played = player.rate.total
        time.sleep(2.0)
        assert player.rate.total == played  # a bounded number of sessions waits
        assert courier.waiting.seconds > 1.5
        server.thaw()
        until(lambda: player.rate.total > played)
        playing.stop.set()
    courier.close()
    sessions = [a_spec().decode(blob) for _, blob in database.read(BEGINNING, 100_000)[0]]
    numbers = [int(session.metadata["sequence"]) for session in sessions]
    assert set(numbers) == set(range(courier.worker.sessions))  # none is missing; the trainer knows which came twice


# -- the network is bad ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"latency": 0.1}, {"rate": 30_000}, {"pieces": 40}, {"fuse": 3000}, {"silent": True}],
    ids=["latency", "bandwidth", "slices", "cut in a request", "half-open"],
)
def test_a_bad_network_makes_it_slower_and_never_wrong(server: Breakable, bad: dict[str, Any]) -> None:
    with Proxy(server.url) as proxy, Team(proxy.url) as team:
        team.goes_on()
        for _ in range(3):
            vars(proxy).update(bad)
            time.sleep(0.7)
        if not proxy.silent:
            team.goes_on(20.0)
        proxy.heal()
        team.goes_on()
        assert proxy.resets == (3 if "fuse" in bad else 0)


def test_connections_that_are_reset_all_the_time(server: Breakable) -> None:
    with Proxy(server.url) as proxy, Team(proxy.url) as team:
        for _ in range(30):
            time.sleep(0.1)
            proxy.reset()
        team.goes_on()
