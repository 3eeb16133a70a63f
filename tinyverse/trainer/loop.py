"""Loop: a trainer at work in three threads, so that learning waits for neither the database nor the disk of others.

Feeder   database ──▶ Replay
train    Replay ──▶ learner, in the caller's thread
Herald   weights, heartbeats and counters ──▶ database
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable

from tinyverse.core import distributed
from tinyverse.core.errors import DatabaseLost, LeaseLost
from tinyverse.core.timing import Ticker
from tinyverse.database.base import HEARTBEAT_SECONDS, RETRY_SECONDS
from tinyverse.trainer.trainer import Snapshot, Trainer

logger = logging.getLogger(__name__)


class Feeder(threading.Thread):
    """Calls `feed` for ever; survives a lost database."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(name="feeder", daemon=True)
        self.trainer = trainer
        self.failure: Exception | None = None
        self.fed = threading.Event()
        self.closing = threading.Event()

    def run(self) -> None:
        while not self.closing.is_set():
            try:
                if self.trainer.feed(wait=0.2):
                    self.fed.set()
            except DatabaseLost as error:
                self.trainer.worker.error = str(error)
                logger.warning("%s Trying again.", error)
                self.closing.wait(RETRY_SECONDS)
            except Exception as error:  # raised again by whoever trains
                self.failure = error
                return


class Herald(threading.Thread):
    """Publishes snapshots, and sends a heartbeat each second. A newer snapshot replaces one that is still waiting."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(name="herald", daemon=True)
        self.trainer = trainer
        self.failure: Exception | None = None
        self.closing = threading.Event()
        self._snapshots: deque[Snapshot] = deque(maxlen=1)
        self._turn = threading.Event()

    def offer(self, snapshot: Snapshot) -> None:
        self._snapshots.append(snapshot)
        self._turn.set()

    @property
    def idle(self) -> bool:
        return not self._snapshots

    def close(self) -> None:
        """Publishes what is left, for at most 5 seconds."""
        self.closing.set()
        self._turn.set()
        self.join(5.0)

    def run(self) -> None:
        while not self.closing.is_set() or self._snapshots:
            self._turn.wait(HEARTBEAT_SECONDS)
            self._turn.clear()
            try:
                self._tell()
            except DatabaseLost as error:
                self.trainer.worker.error = str(error)
                if self.closing.wait(RETRY_SECONDS):
                    return
            except Exception as error:  # raised again by whoever trains
                self.failure = error
                return

    def _tell(self) -> None:
        trainer = self.trainer
        if not distributed.is_rank_zero():
            trainer.beat()
            return
        if not trainer.database.acquire_lease(trainer.holder):
            raise LeaseLost("another trainer has taken over this run, so this one ends. Its checkpoint is kept.")
        while self._snapshots:
            snapshot = self._snapshots[0]
            trainer.publish(snapshot)
            with contextlib.suppress(ValueError):  # a newer one came meanwhile
                self._snapshots.remove(snapshot)
        trainer.report()
        trainer.beat()


def train(
    trainer: Trainer,
    *,
    updates: int | None = None,
    save_every: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    on_turn: Callable[[], None] = lambda: None,
) -> int:
    """Trains until `updates` are made, the run is stopped, or `should_stop`; returns the updates made.

    Ranks call this together and end in the same turn: what stops one, or fails in one, ends all.

    Args:
        save_every: seconds between two checkpoints; there is one more at the end.
        on_turn: called after every update, and ten times a second while waiting.
    """
    feeder, herald = Feeder(trainer), Herald(trainer)
    feeder.start()
    herald.start()
    made, stop_count, saving = 0, trainer.state.stop, Ticker(save_every, later=True)
    try:
        while updates is None or made < updates:
            failed = feeder.failure is not None or herald.failure is not None
            if distributed.any_rank(failed or should_stop() or trainer.state.stop > stop_count):
                break
            stop_count = min(stop_count, trainer.state.stop)  # a server that came back empty counts from 0 again
            if trainer.step():
                made += 1
            else:
                feeder.fed.wait(0.1)
                feeder.fed.clear()
            due = trainer.must_publish or (trainer.waiting.reason == "" and trainer.update % trainer.publish_every == 0)
            if due and distributed.is_rank_zero():
                trainer.must_publish = False
                _offer(herald, trainer)
            if saving.due():
                trainer.save()
            on_turn()
        _raise_failure(feeder, herald)
        trainer.check()
        if distributed.is_rank_zero():
            _offer(herald, trainer)
    finally:
        feeder.closing.set()
        herald.close()
        feeder.join(5.0)
        trainer.leave()
    _raise_failure(feeder, herald)  # of the last publication too
    return made


def _offer(herald: Herald, trainer: Trainer) -> None:
    if (snapshot := trainer.snapshot()) is not None:  # None: the next step says what is wrong
        herald.offer(snapshot)


def _raise_failure(*threads: Feeder | Herald) -> None:
    for thread in threads:
        if thread.failure is not None:
            raise thread.failure
