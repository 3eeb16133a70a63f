"""Loop: a trainer at work in three threads, so that learning waits for neither the database nor the disk of others.

feeder      database ──▶ Replay
train       Replay ──▶ learner, in the caller's thread
publisher   weights, heartbeats and counters ──▶ database
"""

import logging
import threading
from collections.abc import Callable

from tinyverse.core.errors import DatabaseLost
from tinyverse.core.threads import BackgroundThread
from tinyverse.core.timing import Ticker
from tinyverse.database.base import RETRY_SECONDS
from tinyverse.database.heartbeat import StopSignal
from tinyverse.trainer.trainer import Trainer

logger = logging.getLogger(__name__)


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
    publisher, fed = trainer.publisher, threading.Event()
    feeding, publishing = _feeding(trainer, fed), publishing_thread(trainer)
    feeding.start()
    publishing.start()
    made, stop, saving = 0, StopSignal(trainer.state), Ticker(save_every, later=True)
    try:
        while updates is None or made < updates:
            failed = feeding.failure is not None or publishing.failure is not None
            if trainer.ranks.any_rank(failed or should_stop() or stop.hear(trainer.state)):
                break
            publisher.check_lease()
            if trainer.step():
                made += 1
            else:
                fed.wait(0.1)
                fed.clear()
            if publisher.must_publish or (
                not trainer.waiting.reason and trainer.update % trainer.config.publish_every == 0
            ):
                publisher.must_publish = False
                publisher.offer(trainer.snapshot())
            if saving.due():
                trainer.save()
            on_turn()
        for thread in (feeding, publishing):
            thread.raise_failure()
        trainer.check()
        publisher.offer(trainer.snapshot())
    finally:
        feeding.closing.set()
        publishing.closing.set()
        publisher.wake()
        publishing.close()
        feeding.close()
        trainer.leave()
    for thread in (feeding, publishing):  # of the last publication too
        thread.raise_failure()
    return made


def publishing_thread(trainer: Trainer) -> BackgroundThread:
    """Publishes the snapshots that are offered, and sends a heartbeat each second; not started."""

    def note(error: DatabaseLost) -> None:
        trainer.worker.error = str(error)

    def turn() -> None:
        publisher.wait()
        publisher.step(trainer.update)

    publisher = trainer.publisher
    return BackgroundThread(
        "publisher", turn, pause=RETRY_SECONDS, on_lost=note, unfinished=lambda: publisher.unfinished
    )


def _feeding(trainer: Trainer, fed: threading.Event) -> BackgroundThread:
    def feed() -> None:
        if trainer.feed(wait=0.2):
            fed.set()

    def note(error: DatabaseLost) -> None:
        trainer.worker.error = str(error)
        logger.warning("%s Trying again.", error)

    return BackgroundThread("feeder", feed, pause=RETRY_SECONDS, on_lost=note)
