"""Publisher: tells the others in a run what a trainer has: its weights, its numbers, and that it is alive.

    weights, numbers, heartbeat ──▶ database

One trainer at a time publishes for a run: the one that holds the lease. Of several ranks only rank 0 does.
"""

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tinyverse.core.errors import DatabaseLost, LeaseLost, RunConflict, SettingsError
from tinyverse.core.system import boot_time, this_machine
from tinyverse.core.timing import Waiting
from tinyverse.core.weights import Weights, encode_weights
from tinyverse.database import base
from tinyverse.database.base import HEARTBEAT_SECONDS, Database, State, Worker
from tinyverse.database.heartbeat import Heartbeat
from tinyverse.trainer.feeder import Feeder

STOPPED_WAITING = "stopped while waiting for another trainer of this run to end."
TAKEN_OVER = "another trainer has taken over this run, so this one ends. Its checkpoint is kept."


class Snapshot(NamedTuple):
    """Weights of one moment, a copy, so that learning goes on while the publisher encodes and sends them."""

    version: int
    update: int
    step: int
    weights: Weights


class Publisher:
    """The way of a trainer's weights and numbers to a run.

    Args:
        meta: the run config; the publisher creates the run again if the database comes back empty.
        feeder: knows the cursor, the state, and what was played.
    Attributes:
        version: of the newest snapshot.
        published: the newest version that the database is known to have taken; -1: none.
        must_publish: the database has lost the weights.
        holder: the name by which this trainer holds the lease.
    """

    def __init__(
        self, database: Database, meta: Mapping[str, str], worker: Worker, waiting: Waiting, feeder: Feeder
    ) -> None:
        self.database, self.meta, self.worker, self.waiting = database, dict(meta), worker, waiting
        self.feeder, self.ranks = feeder, feeder.ranks
        self.holder = f"{this_machine()}:{worker.pid}:{worker.id}"
        self._sure_until = 0.0  # by `boot_time`: nobody else can have the lease before
        self.version = self.published = -1
        self.must_publish = False
        self._rejections_told = 0  # to the database
        self._snapshots: deque[Snapshot] = deque(maxlen=1)
        self._turn = threading.Event()

    def join(self, should_stop: Callable[[], bool]) -> None:
        """Creates or joins the run. Rank 0 takes the lease, and waits while another trainer holds it.

        Raises:
            SettingsError: somebody stopped the trainer while it waited.
        """
        self.meta = self.database.create(self.meta)
        self._heartbeat = Heartbeat(self.database, self.worker, self.waiting)
        mine = not self.ranks.is_rank_zero or self._renew()
        while not mine:
            self.waiting.set("another trainer, which publishes for this run")
            with contextlib.suppress(DatabaseLost):  # it may come back, as for those at work
                self.beat()
                mine = self._renew()
            if self._heartbeat.stop.is_set or should_stop():
                raise SettingsError(STOPPED_WAITING)
            time.sleep(0.0 if mine else HEARTBEAT_SECONDS)
        self.waiting.set("")

    def _renew(self) -> bool:
        began = boot_time()
        mine = self.database.acquire_lease(self.holder)
        self._sure_until = began + base.LEASE_SECONDS if mine else 0.0
        return mine

    def check_lease(self) -> None:
        """Raises LeaseLost where another trainer has taken over, as it can while this process or machine was frozen.

        To be called before anything is written: it asks the database only where the lease may have run out.
        """
        if self.ranks.is_rank_zero and boot_time() > self._sure_until:
            with contextlib.suppress(DatabaseLost):  # then nobody can have taken it from this server
                if not self._renew():
                    raise LeaseLost(TAKEN_OVER)

    def leave(self) -> None:
        with contextlib.suppress(DatabaseLost):
            self.database.release_lease(self.holder)
            self.database.leave(self.worker.id)

    def publish(self, snapshot: Snapshot) -> None:
        """Publishes weights. Players see version and weights change together.

        It may be called again where it is unknown whether the weights arrived. Where the run is gone, it publishes nothing
        until the feeder has seen that too: `must_publish` then asks for a newer snapshot.

        Raises:
            LeaseLost: another trainer publishes now.
        """
        version, update, step, weights = snapshot
        blob = encode_weights(weights, version=version, update=update, step=step)
        put = functools.partial(
            self.database.put_weights, blob, version, holder=self.holder, update=update, step=step,
            run_id=self.feeder.state.run_id or self._create(update),
        )  # fmt: skip
        with contextlib.suppress(RunConflict):
            try:
                put()
            except LeaseLost:
                if self.database.get_weights(version=version) != (version, blob):  # else only the answer had been lost
                    if not self._renew():
                        raise
                    put()  # nobody had the lease: it ran out just before; the database refuses an older version again
            self.published = version

    def _create(self, update: int) -> str:
        """Creates a run that is gone (an empty server, a `clear`), which the feeder has seen; returns its id."""
        with self.feeder.lock:
            self.report(update)  # before the run is there: it must not begin where the one before had ended
            meta = self.database.create({key: value for key, value in self.meta.items() if key != "run_id"})
            self.database.acquire_lease(self.holder)
        return meta["run_id"]

    @property
    def sampled(self) -> float:
        """Samples so far by all ranks, as players count them."""
        return self.feeder.replay.limiter.sampled - self.ranks.deficit_elsewhere

    def report(self, update: int) -> None:
        """The numbers by which players know whether to go on, and how sessions are used; of all ranks together."""
        feeder, config, ranks = self.feeder, self.feeder.replay.config, self.ranks
        with feeder.lock:
            sampled = {"sampled": self.sampled} if feeder.caught_up else {}  # else the database knows better
            self.database.report(
                **sampled, cursor=ranks.furthest(feeder.cursor.learned, feeder.state.run_id), update=update,
                step=feeder.steps, reuse=config.reuse or 1.0, max_ahead=config.max_ahead and config.max_ahead * ranks.size,
                capacity=config.buffer_size * ranks.size,
            )  # fmt: skip

    def try_to_report(self, update: int) -> bool:
        """Whether the database took the report; of other ranks than 0 it wants none."""
        try:
            if self.ranks.is_rank_zero:
                self.report(update)
        except DatabaseLost as error:
            self.worker.error = str(error)
            return False
        return True

    def beat(self) -> State:
        """A heartbeat, and what was rejected since the last."""
        worker, feeder, rejections = self.worker, self.feeder, sum(self.feeder.rejected.values())
        if rejections > self._rejections_told and self.ranks.is_rank_zero:  # every rank rejects the same
            new, self._rejections_told = rejections - self._rejections_told, rejections
            self.database.count(rejected=new)
        worker.steps, worker.steps_per_second = feeder.steps, feeder.step_rate.per_second()
        worker.version = self.version if self.ranks.is_rank_zero else feeder.state.version
        worker.lag = feeder.replay.lag
        return self._heartbeat.beat()

    def offer(self, snapshot: Snapshot | None) -> None:
        """Hands a snapshot, if it is one, to the publisher's thread. A newer one replaces one that still waits."""
        if snapshot is not None:
            self._snapshots.append(snapshot)
            self.wake()

    def wake(self) -> None:
        self._turn.set()

    @property
    def unfinished(self) -> bool:
        """Whether a snapshot waits."""
        return bool(self._snapshots)

    def wait(self) -> None:
        """Waits for a second, or until a snapshot comes."""
        self._turn.wait(HEARTBEAT_SECONDS)
        self._turn.clear()

    def step(self, update: int) -> None:
        """Publishes, reports, sends a heartbeat. Raises LeaseLost where another trainer publishes now."""
        if self.ranks.is_rank_zero:
            if not self._renew():
                raise LeaseLost(TAKEN_OVER)
            while self._snapshots:
                snapshot = self._snapshots[0]
                self.publish(snapshot)
                update = max(update, snapshot.update)  # it may have come after this turn began
                with contextlib.suppress(ValueError):  # a newer one came meanwhile
                    self._snapshots.remove(snapshot)
            self.report(update)
        self.beat()
