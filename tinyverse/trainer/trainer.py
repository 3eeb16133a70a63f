"""Trainer: draws batches from the replay, learns from them, and counts.

    feed()      database ──▶ Feeder ──▶ Replay
    step()      Replay ──▶ Batch ──▶ learner
    publish()   learner ──▶ Publisher ──▶ database

`loop.train` calls these from three threads, `local` one after the other. The trainer knows no algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from tinyverse.agents.agent import Agent
from tinyverse.algorithms.learner import Learner
from tinyverse.core.batch import Batch
from tinyverse.core.errors import NotANumber
from tinyverse.core.timing import Rate, Stages, Waiting
from tinyverse.database.base import Database, State, new_worker
from tinyverse.replay.buffer import Replay
from tinyverse.trainer.checkpoint import Checkpoints
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.feeder import Feeder
from tinyverse.trainer.nan_guard import NanGuard
from tinyverse.trainer.publisher import Publisher, Snapshot
from tinyverse.trainer.ranks import Agreement, SingleProcess, this_process

if TYPE_CHECKING:
    from tinyverse.trainer.run_folder import RunFolder


class Trainer:
    """Learns from the sessions of one run.

    Args:
        agent: the learner's; takes the published weights where there is no checkpoint.
        replay: of this rank's share, see `ReplayConfig.shared`.
        meta: the run config.
        folder: where checkpoints and metrics go; None keeps nothing, as all ranks but 0.
        ranks: who learns with this process; None: those that a launcher started.
    """

    def __init__(
        self, agent: Agent, learner: Learner, replay: Replay, database: Database, meta: Mapping[str, str], *,
        folder: RunFolder | None = None, config: TrainerConfig = TrainerConfig(), ranks: SingleProcess | None = None,  # noqa: B008
    ) -> None:  # fmt: skip
        config.check(replay.config)
        self.ranks = ranks or this_process()
        self.ranks.check(learner)
        self.agent, self.learner, self.replay, self.database = agent, learner, replay, database
        self.folder, self.config = folder, config
        self.worker, self.waiting, self.stages = new_worker("train"), Waiting(), Stages()
        self.feeder = Feeder(replay, database, self.worker, self.ranks, player_share=config.player_share)
        self.publisher = Publisher(database, meta, self.worker, self.waiting, self.feeder)
        self.guard, self.checkpoints = NanGuard(folder), Checkpoints(self)
        self.update, self.update_rate = 0, Rate()  # updates made
        self.metrics: Mapping[str, Any] = {}  # of the last update
        self._batch: Batch | None = None  # drawn, and kept while another rank has none or the database is lost

    @property
    def version(self) -> int:
        return self.publisher.version

    @property
    def state(self) -> State:
        return self.feeder.state  # as of its last read

    def join(self, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Creates or joins the run; rank 0 takes the lease (waiting for another trainer's), restores and publishes.

        Other ranks call this after rank 0, and all of them then call `checkpoints.level`.

        Raises:
            SettingsError: somebody stopped it while it waited for another trainer's lease.
        """
        self.publisher.join(should_stop)
        self.feeder.state = self.database.state()
        if not self.ranks.is_rank_zero:
            return
        self.checkpoints.restore()
        self.publisher.report(self.update)
        if (snapshot := self.snapshot()) is None:
            raise NotANumber("the weights to begin with hold NaN or infinity. Begin with others, or anew with --fresh.")
        self.publish(snapshot)

    def leave(self) -> None:
        """Saves, and tells the others."""
        try:
            self.save(wait=True)
        finally:
            self.publisher.leave()

    def feed(self, wait: float = 0.0) -> int:
        """Reads new sessions into the replay; returns how many there were."""
        published = self.publisher.published
        count = self.feeder.feed(self.update, wait)
        if self.ranks.is_rank_zero and (self.state.version < published or not self.state.run_id):
            self.publisher.published, self.publisher.must_publish = -1, True  # the database has lost the weights
        return count

    def step(self) -> bool:
        """One update, if data allows on every rank; else False, and `waiting` says why."""
        self._batch = self._batch or self._draw()
        with self.stages("agree"):
            if not self._all_are_ready():
                return False
        batch, self._batch = self._batch, None
        assert batch is not None
        self.waiting.set("")
        bf16 = self.config.precision == "bf16"  # without a cache, which keeps weights that change within train_step
        autocast = torch.autocast(self.replay.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)
        with self.stages("update"), autocast:
            self.metrics = self.learner.train_step(batch)
        if "priorities" in self.metrics:
            self.replay.set_priorities(batch.slots, torch.as_tensor(self.metrics["priorities"]))
        self.update += 1
        self.update_rate.add(1)
        self.guard.note(self.update, batch, self.metrics)
        return True

    def check(self) -> None:
        """Raises NotANumber where one of the newest updates was bad. Collective; to be called after the last update."""
        if self.ranks.any_rank(self.guard.is_bad(wait=True)):
            self.guard.stop(self.update, self.ranks)

    def _draw(self) -> Batch | None:
        if not self.feeder.caught_up:
            empty = self.state.inserted == 0 and self.replay.waits_for()
            self.waiting.set(empty or "the stored sessions to be read")
            return None
        with self.stages("sample"):
            batch = self.replay.sample(self.update, length=self.learner.length, burn_in=self.learner.burn_in)
        if batch is None:
            self.waiting.set(self.replay.waits_for())
        self.feeder.note_learned()
        return batch

    def _all_are_ready(self) -> bool:
        """Whether every rank has a batch, and the database knows: no session is learned from twice by accident. Collective."""
        agreed = self.ranks.agree(self._batch is not None, self.guard.is_bad(), self.feeder)
        if agreed.is_bad:
            self.guard.stop(self.update, self.ranks)
        if agreed.has_batch and self.ranks.any_rank(not self.publisher.try_to_report(self.update)):
            agreed = Agreement(has_batch=False, waits_for="the database")
        if agreed.waits_for:
            self.waiting.set(agreed.waits_for)
        return agreed.has_batch

    def snapshot(self) -> Snapshot | None:
        """The weights of now under the next version. Not to be called during an update.

        None on other ranks than 0, which publish nothing, and if the weights are no numbers: the next step says so.
        """
        if not self.ranks.is_rank_zero or not self.guard.passes(self.update, weights := self.learner.get_weights()):
            return None
        self.publisher.version += 1
        return Snapshot(self.version, self.update, self.feeder.steps, weights)

    def publish(self, snapshot: Snapshot) -> None:
        self.publisher.publish(snapshot)

    def save(self, wait: bool = False) -> None:
        self.checkpoints.save(wait)

    def row(self) -> dict[str, Any]:
        """Where training stands, for logs; None for what is not finite. Losses come from the device here: CPU–GPU sync."""
        losses = {name: float(value) for name, value in self.metrics.items() if name != "priorities"}
        return {
            "update": self.update, "step": (steps := self.feeder.steps), "frames": steps * self.config.frame_skip,
            "version": self.version, "train/updates_per_second": self.update_rate.per_second(), "train/learning_rate": self.learner.current_learning_rate,
            **self.feeder.row(), **self.replay.row(),
            "replay/reuse": self.publisher.sampled / max(self.replay.limiter.inserted, 1),
            **{f"time/{name}": share for name, share in self.stages.take().items()},
            **{name: loss if math.isfinite(loss) else None for name, loss in losses.items()},
        }  # fmt: skip
