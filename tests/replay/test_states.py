"""A run on a real server does what a model of three things says: its sessions, its epoch, its version.

Hypothesis pushes, retries, reads, learns, trims, publishes, clears, kills the trainer, kills the server, brings it back empty or
as an older copy of itself, in any order; after every step the promises hold, and a smallest story is printed where they do not.
"""

from __future__ import annotations

import copy
import dataclasses
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.helpers.chaos import Breakable, Proxy
from tinyverse.core.errors import DatabaseLost, LeaseLost
from tinyverse.core.system import this_machine
from tinyverse.database.base import BEGINNING, State, is_behind
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
PARTS = some.integers(1, 5)  # sessions in a push
KEYS = 9 + 3  # that a run has, at most: nine of one kind each, three versions


@dataclasses.dataclass
class Model:
    """What the server should hold of the run."""

    entries: list[bytes] = dataclasses.field(default_factory=list)  # kept sessions, oldest first
    inserted: int = 0
    capacity: int = State.capacity
    run_id: str = ""
    version: int = -1
    weights: dict[int, bytes] = dataclasses.field(default_factory=dict)
    cursor: str = BEGINNING  # up to which a trainer has learned

    def push(self, blobs: list[bytes]) -> None:
        self.entries = (self.entries + blobs)[-self.capacity :]
        self.inserted += len(blobs)


def a_dead_holder() -> str:
    """As of a trainer on this machine that was killed since."""
    return f"{this_machine()}:{2**31 - 1}:{secrets.token_hex(4)}"


class Story(RuleBasedStateMachine):
    server: Breakable
    proxy: Proxy

    def __init__(self) -> None:
        super().__init__()
        self.proxy.heal()
        self.name = f"story-{secrets.token_hex(4)}"
        self.database = RedisDatabase(self.server.url, self.name)
        self.far = RedisDatabase(self.proxy.url, self.name)  # the same run, over a bad network
        self.model, self.copy = Model(), Model()
        self.holder, self.number = a_dead_holder(), 0
        self.cursor = BEGINNING  # of a reader in this incarnation
        self.loaded = ("", -1)  # epoch and version of a player's weights
        self.learned_to, self.learned = BEGINNING, set[str]()  # what the trainer at work knows; ids in this incarnation

    @initialize()
    def begin(self) -> None:
        self.server.save()

    def teardown(self) -> None:
        self.database.clear()
        self.database.close()
        self.far.close()

    def blobs(self, count: int) -> list[bytes]:
        self.number += count
        return [b"%d " % number + b"." * 300 for number in range(self.number - count, self.number)]

    @rule()
    def create(self) -> None:
        run_id = self.database.create({"spec": "a"})["run_id"]
        assert run_id == self.model.run_id or not self.model.run_id
        self.model.run_id = run_id

    @rule(count=PARTS)
    def push(self, count: int) -> None:
        blobs = self.blobs(count)
        assert self.database.append(blobs).inserted == self.model.inserted + count
        self.model.push(blobs)

    @rule(count=PARTS, after=some.integers(1, 3000))
    def push_over_a_line_that_breaks_and_again(self, count: int, after: int) -> None:
        """The first arrives whole or not at all; so the second makes it there once or twice, but whole."""
        blobs = self.blobs(count)
        self.far.state()
        self.proxy.fuse = after
        try:
            self.far.append(blobs)
            arrived = True
        except DatabaseLost:
            now = self.database.state().inserted
            assert now in (self.model.inserted, self.model.inserted + count)
            arrived = now > self.model.inserted
        self.proxy.heal()
        if arrived:
            self.model.push(blobs)
        self.push_again(blobs)

    def push_again(self, blobs: list[bytes]) -> None:
        self.far.append(blobs)
        self.model.push(blobs)

    @rule(limit=some.integers(1, 8))
    def read(self, limit: int) -> None:
        """A reader goes on where it was: in order, all that is kept, nothing again but what was pushed again."""
        entries, _ = self.database.read(self.cursor, limit)
        blobs = [blob for _, blob in entries]
        assert not any(is_behind(key, self.cursor) for key, _ in entries)
        if entries:
            self.cursor = entries[-1][0]
        first = len(self.model.entries) - len(self.database.read(self.cursor, 10_000)[0]) - len(blobs)
        assert blobs == self.model.entries[first : first + len(blobs)]

    @rule(limit=some.integers(1, 8))
    def learn(self, limit: int) -> None:
        """As a trainer that learns from each session once: it first tells how far it will have come."""
        keys = [key for key, _ in self.database.read(self.learned_to, limit)[0]]
        if keys:
            self.database.report(cursor=keys[-1])
            self.model.cursor = self.learned_to = keys[-1]
        assert self.learned.isdisjoint(keys)
        self.learned |= set(keys)

    def new_epoch(self) -> None:
        """Positions and ids of the one before mean nothing any more."""
        self.cursor = self.learned_to = BEGINNING
        self.learned.clear()

    @rule(capacity=some.integers(1, 12))
    def trim(self, capacity: int) -> None:
        self.database.report(capacity=capacity)
        self.model.capacity = capacity
        self.model.entries = self.model.entries[-capacity:]

    @rule()
    def publish(self) -> None:
        """As a trainer does: above all it knows of."""
        assert self.database.acquire_lease(self.holder)
        version = self.model.version + 1
        blob = b"weights %d" % version
        self.database.put_weights(blob, version, holder=self.holder)
        self.model.version = version
        self.model.weights = dict(sorted({**self.model.weights, version: blob}.items())[-3:])

    @rule(back=some.integers(0, 3))
    def publish_what_is_not_newer(self, back: int) -> None:
        assert self.database.acquire_lease(self.holder)
        if self.model.version - back >= 0:
            with pytest.raises(LeaseLost):
                self.database.put_weights(b"older", self.model.version - back, holder=self.holder)

    @rule()
    def publish_without_the_lease(self) -> None:
        self.database.acquire_lease(self.holder)
        with pytest.raises(LeaseLost):
            self.database.put_weights(b"foreign", self.model.version + 1, holder="another")

    @rule()
    def kill_the_trainer_and_start_it_again(self) -> None:
        """The new one need not wait for the lease of the dead one, of which nothing is taken any more."""
        before, self.holder = self.holder, a_dead_holder()
        assert self.database.acquire_lease(self.holder)
        with pytest.raises(LeaseLost):
            self.database.put_weights(b"late", self.model.version + 1, holder=before)
        self.learned_to = self.database.state().cursor
        # what an older copy of the server does not know, and no trainer any more
        self.learned = {key for key in self.learned if is_behind(key, self.model.cursor)}

    @rule()
    def load(self) -> None:
        """A player loads newer weights of this epoch, or none."""
        state = self.database.state()
        newer_than = self.loaded[1] if state.run_id == self.loaded[0] else -1
        found = self.database.get_weights(newer_than=newer_than)
        assert (found is not None) == (self.model.version > newer_than)
        if found is not None:
            assert found == (self.model.version, self.model.weights[self.model.version])
            self.loaded = (state.run_id, found[0])

    @rule(keep_weights=some.booleans())
    def clear(self, keep_weights: bool) -> None:
        self.database.clear(keep_weights=keep_weights)
        kept = self.model if keep_weights else Model()
        self.model = Model(run_id=kept.run_id, version=kept.version, weights=kept.weights, capacity=kept.capacity)
        if not keep_weights:
            self.new_epoch()

    @rule()
    def copy_the_server(self) -> None:
        self.server.save()
        self.copy = copy.deepcopy(self.model)

    @rule()
    def kill_and_bring_back_the_copy(self) -> None:
        self.server.kill()
        self.server.start()
        if self.copy.run_id != self.model.run_id:
            self.new_epoch()
        self.model = copy.deepcopy(self.copy)

    @precondition(lambda self: self.model.inserted or self.model.run_id)
    @rule()
    def kill_and_bring_back_nothing(self) -> None:
        self.server.kill()
        self.server.forget()
        self.server.start()
        self.server.save()
        self.model, self.copy = Model(), Model()
        self.new_epoch()

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        model, entries = self.model, self.database.read(BEGINNING, 10_000)
        blobs, state = [blob for _, blob in entries[0]], entries[1]
        assert blobs == model.entries and len(blobs) <= model.capacity
        seen: Any = (state.run_id, state.version, state.inserted, state.capacity, state.cursor)
        assert seen == (model.run_id, model.version, model.inserted, model.capacity, model.cursor)
        with connect(self.server.admin_url) as admin:
            assert len(admin.keys(f"tv:{{{self.name}}}:*")) <= KEYS  # type: ignore[arg-type]
        newest = self.database.get_weights()
        assert newest == (None if model.version < 0 else (model.version, model.weights[model.version]))


@pytest.fixture(scope="module")
def story() -> Iterator[type[Story]]:
    with Breakable() as server, Proxy(server.url) as proxy:
        Story.server, Story.proxy = server, proxy
        yield Story


def test_whatever_happens_the_server_does_what_the_model_says(story: type[Story]) -> None:
    checked = settings(max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(story, settings=checked)  # type: ignore[arg-type]
