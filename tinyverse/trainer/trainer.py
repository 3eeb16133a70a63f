"""Trainer: pulls every new session once, keeps the newest in its memory, learns, and publishes weights.

    feed()      database ──▶ Intake ──▶ Replay
    step()      Replay ──▶ Batch ──▶ learner
    publish()   weights ──▶ database

`loop.train` calls these from three threads, `local` one after the other. The trainer knows no algorithm. Its checkpoint is the truth: the database may be lost at any time.

Of several ranks (see `towers`) each reads every session, and so knows all that was played, but keeps only its own share.
They step together or wait together. Rank 0 alone speaks for them. The position it reports is the furthest of any rank:
so after a restart none learns again from what it had, though the others lose what they had not come to yet.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from tinyverse.agents.agent import Agent
from tinyverse.algorithms.learner import Learner
from tinyverse.core import distributed, rng
from tinyverse.core.batch import Batch
from tinyverse.core.errors import (
    DatabaseLost,
    LeaseLost,
    NotANumber,
    RunConflict,
    SettingsError,
    SpecError,
    TinyverseError,
)
from tinyverse.core.timing import Rate, Stages, Waiting
from tinyverse.core.weights import Weights, decode_weights, encode_weights
from tinyverse.database.base import Database, State
from tinyverse.database.cursor import BEGINNING, from_numbers, furthest, is_ahead, to_numbers
from tinyverse.player.player import HEARTBEAT_SECONDS, new_worker
from tinyverse.replay.buffer import Replay
from tinyverse.trainer.feeder import Intake
from tinyverse.trainer.nan_guard import Guard
from tinyverse.trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

READ_AT_ONCE = 256  # sessions, fewer if they take more than
READ_BYTES = 256 << 20
REPLAY_SAVED = 10**9  # bytes of stored sessions that a checkpoint holds unless it is told to, or not to


class Snapshot(NamedTuple):
    """Weights of one moment, a copy, so that learning goes on while they are published."""

    version: int
    update: int
    step: int
    weights: Weights


class Trainer:
    """Learns from the sessions of one run.

    Args:
        agent: the learner's; takes the published weights where there is no checkpoint.
        replay: of this rank's share, see `Flow.shared`.
        meta: the run's agreement; created in the database again if that comes back empty.
        folder: where checkpoints and metrics go; None keeps nothing, as all ranks but 0.
        save_replay: whether checkpoints hold the stored sessions; None: while these take at most 1 GB.
        precision: "fp32", or "bf16" for autocast.
        on_nan: "stop", or "rollback" to the last good checkpoint in `folder`.
        player_share: see `Intake`.
    """

    def __init__(
        self,
        agent: Agent,
        learner: Learner,
        replay: Replay,
        database: Database,
        meta: Mapping[str, str],
        *,
        folder: RunFolder | None = None,
        publish_every: int = 10,
        precision: str = "fp32",
        frame_skip: int = 1,
        save_replay: bool | None = None,
        on_nan: str = "stop",
        player_share: float = 1.0,
    ) -> None:
        max_lag = replay.flow.max_lag
        if max_lag is not None and max_lag < publish_every - 1:
            raise SettingsError(
                f"max_lag {max_lag} with weights published every {publish_every} updates: all sessions would soon be too old. "
                f"Publish more often (-s {max_lag + 1}) or allow more lag (--max-lag {publish_every - 1})."
            )
        if distributed.size() > 1 and not learner.towered:
            raise SettingsError(
                f"{type(learner).__name__} cannot learn on {distributed.size()} ranks: it does not average over them. Use a "
                "TorchLearner, whose optimizer does, or train without --gpus."
            )
        self.agent, self.learner, self.replay, self.database = agent, learner, replay, database
        self.meta, self.folder = dict(meta), folder
        self.publish_every, self.precision, self.frame_skip = publish_every, precision, frame_skip
        self.save_replay = save_replay
        self.intake = Intake(replay, player_share)
        self.guard = Guard(on_nan, folder)
        self.worker = new_worker("train")
        self.holder = f"{socket.gethostname()}:{self.worker.pid}:{self.worker.id}"
        self.update = 0  # updates made
        self.version = -1
        self.waiting, self.stages = Waiting(), Stages()
        self.update_rate = Rate()
        self.metrics: Mapping[str, Any] = {}  # of the last update
        self.state = State()
        self._lags: deque[float] = deque(maxlen=100)
        self._lags_of_sessions: deque[np.ndarray] = deque(maxlen=100)
        self._consumed = BEGINNING  # learned from so far
        self._furthest = BEGINNING  # that any rank has learned from
        self._telling = threading.RLock()  # what is told of positions is of the run's present epoch
        self._at_once = READ_AT_ONCE  # sessions asked for
        self._drawn: Batch | None = None  # and not learned from yet: another rank has none, or the database is lost
        self._owed_elsewhere = 0.0  # deliveries, to the shares of the other ranks
        self._rejections_told = 0  # to the database
        self._checkpointed = -1
        self._began = time.monotonic()
        self.must_publish = False
        self._published = -1  # the newest version that the database is known to have taken

    # -- coming and going ---------------------------------------------------------------------------------------

    def join(self, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Creates or joins the run, takes the lease (waiting for another trainer's), restores, publishes.

        Of several ranks only rank 0 does; the others call this after it, and all of them then `level`.

        Raises:
            SettingsError: it was asked to stop while it waited for another trainer's lease.
        """
        self.meta = self.database.create(self.meta)
        if not distributed.leads():
            self.state = self.database.state()
            return
        stop_count, stopped, mine = self.database.state().stop, False, self.database.acquire_lease(self.holder)
        while not mine:
            self.waiting.set("another trainer, which publishes for this run")
            with contextlib.suppress(DatabaseLost):  # it may come back, as for those at work
                now = self.beat().stop
                stopped, stop_count = now > stop_count, min(now, stop_count)  # an emptied server counts from 0 again
                mine = self.database.acquire_lease(self.holder)
            if stopped or should_stop():
                raise SettingsError("stopped while waiting for another trainer of this run to end.")
            time.sleep(0.0 if mine else HEARTBEAT_SECONDS)
        self.waiting.set("")
        self.state = self.database.state()
        self._restore()
        self.report()
        if (snapshot := self.snapshot()) is None:
            raise NotANumber("the weights to begin with hold NaN or infinity. Begin with others, or anew with --fresh.")
        self.publish(snapshot)
        if self.guard.on_nan == "rollback" and self.folder and self.folder.newest() is None:
            self.save(wait=True)

    def _restore(self) -> None:
        self._read_on_from(self.state.position)
        checkpoint = self.folder.load() if self.folder else None
        if checkpoint is not None:
            self._take_up(checkpoint)
        elif (found := self.database.get_weights()) is not None:  # no folder here: go on from what was published
            weights, numbers = decode_weights(found[1])
            self.agent.set_weights(weights)
            self.version, self.update, self.intake.steps = found[0], numbers["update"], numbers["step"]

    def _take_up(self, checkpoint: Mapping[str, Any]) -> None:
        try:
            self.learner.load_state_dict(checkpoint["learner"])
        except (RuntimeError, ValueError, LookupError, SpecError) as error:  # of torch, of NumPy, of a dict, ours
            raise RunConflict(
                f"the checkpoint in {self.folder and self.folder.path}/ does not fit this experiment's network or optimizer "
                f"({str(error).splitlines()[0]} …). Start anew with --fresh, from its weights with --init-from if they fit."
            ) from error
        self.update = self._checkpointed = checkpoint["update"]
        self.version = max(checkpoint["version"], self.state.version)
        self.intake.load_counters(checkpoint)
        if "rng" not in checkpoint:  # of a version before these were kept
            return
        rng.set_state(checkpoint["rng"])
        self.replay.random_state = checkpoint["drawing"]
        same_database = checkpoint["epoch"] == self.state.epoch
        if same_database:
            self.intake.counted = checkpoint["position"]
        if checkpoint["replay"] is None or self.save_replay is False or not self.folder:
            return
        try:
            self.replay.load_state_dict(checkpoint["replay"], self.folder.stored.read(checkpoint["sessions"]))
        except SpecError as error:
            logger.warning("%s They are left out.", error)
            return
        if not same_database:
            self.replay.forget_positions()
            return
        self.intake.load_place(checkpoint)
        if self.replay.sampler.reuse is not None and is_ahead(self._consumed, checkpoint["consumed"]):
            self.replay.settle(self._consumed)  # updates that were lost had learned from them

    def _read_on_from(self, position: str) -> None:
        self._consumed = self._furthest = position
        self.intake.go_on_from(position)

    def level(self) -> None:
        """Every rank takes over what rank 0 has learned so far. Does nothing where there is only one."""
        if distributed.size() == 1:
            return
        leaders = distributed.from_leader({
            "learner": self.learner.state_dict(), "update": self.update, "version": self.version,
            "consumed": self._consumed, "counted": self.intake.counted, **self.intake.counters(),
        })  # fmt: skip
        self.learner.load_state_dict(leaders["learner"])
        self.update, self.version = leaders["update"], leaders["version"]
        self._read_on_from(leaders["consumed"])
        self.intake.load_counters(leaders)
        self.intake.counted = leaders["counted"]

    def leave(self) -> None:
        """Saves, and tells the others."""
        try:
            self.save(wait=True)
        finally:
            with contextlib.suppress(DatabaseLost):
                self.database.release_lease(self.holder)
                self.database.leave(self.worker.id)

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint unless nothing was learned since the last, or NaN was; beside learning, unless it is to
        `wait`.

        Raises:
            TinyverseError: with `wait`, it could not be written.
        """
        folder = self.folder
        if folder is None or (folder.writing and not wait):
            return
        if not folder.finish():
            self._checkpointed = -1
        if self.update == self._checkpointed:
            return
        with self.stages("save"):
            contents = self._contents()
            if not self.guard.passes(self.update, contents["weights"]):
                return
            sessions = self.replay.sessions(contents["replay"]) if contents["replay"] else None
            try:
                folder.save(self.update, contents, sessions, wait=wait)
            except (OSError, RuntimeError) as error:
                raise TinyverseError(f"no checkpoint of update {self.update} could be written: {error}.") from error
        self._checkpointed = self.update

    def _contents(self) -> dict[str, Any]:
        """All that a checkpoint holds, but for the stored sessions themselves."""
        with self.intake.lock:
            return {
                "learner": self.learner.state_dict(), "weights": dict(self.learner.get_weights()),
                "update": self.update, "version": self.version, "meta": self.meta, "rng": rng.get_state(),
                "epoch": self.state.epoch, "consumed": self._consumed, **self.intake.state_dict(),
                "drawing": self.replay.random_state,
                "replay": self.replay.state_dict() if self.intake.caught_up and self._keeps_replay() else None,
            }  # fmt: skip

    def _keeps_replay(self) -> bool:
        if self.save_replay is None and (nbytes := self.replay.kept_nbytes) > REPLAY_SAVED:
            logger.warning(
                "the stored sessions take %.1f GB: checkpoints leave them out, unless --save-replay.", nbytes / 1e9
            )
            self.save_replay = False
        return self.save_replay is not False

    # -- learning -----------------------------------------------------------------------------------------------

    def feed(self, wait: float = 0.0) -> int:
        """Reads new sessions into the replay; returns how many there were."""
        limit, published = min(self._at_once, max(1, READ_BYTES // self.replay.spec.nbytes)), self._published
        try:
            entries, state = self.database.read(self.intake.position, limit, wait)
        except DatabaseLost:
            self._at_once = max(1, limit // 4)  # what is larger than a session can be may be too large for one answer
            raise
        self._at_once = min(READ_AT_ONCE, 2 * self._at_once)
        if state.epoch != self.state.epoch or not state.epoch:
            self._rejoin()
            return 0
        if state.version < published:  # the server came back with an older copy of itself
            self._published, self.must_publish = -1, True
        for position, blob in entries:
            if reason := self.intake.take(position, blob, self.update):
                self.worker.error = f"a session was rejected: {reason}"
        if len(entries) < limit:
            self.intake.at_the_end(state.inserted)
        self.state = state
        return len(entries)

    def step(self) -> bool:
        """One update, if data allows on every rank; else False, and `waiting` says why."""
        self._drawn = self._drawn or self._draw()
        with self.stages("agree"):
            if not (self._all_have_drawn() and self._consumption_is_known()):
                return False
        batch, self._drawn = self._drawn, None
        assert batch is not None
        self.waiting.set("")
        with self.stages("update"), self._autocast():
            self.metrics = self.learner.train_step(batch)
        if "priorities" in self.metrics:
            self.replay.set_priorities(batch.slots, torch.as_tensor(self.metrics["priorities"]))
        self._lags.append(self.replay.lag)
        self._lags_of_sessions.append(self.replay.lags)
        self.update += 1
        self.update_rate.add(1)
        self.guard.note(self.update, batch, self.metrics)
        return True

    def check(self) -> None:
        """Looks whether the newest updates were sound. Collective; to be called before what was learned is the last.

        Raises:
            NotANumber: they were not, and are not to be rolled back.
        """
        if distributed.anywhere(self.guard.is_spoilt(wait=True)):
            self._recover()

    def _recover(self) -> None:
        """After NaN: counters and versions go on, from the learner of the last checkpoint."""
        self.guard.recover(self.update, self.learner, self.replay)
        self.must_publish = True

    def _draw(self) -> Batch | None:
        if not self.intake.caught_up:
            empty = self.state.inserted == 0 and self.replay.waits_for()
            self.waiting.set(empty or "the stored sessions to be read")
            return None
        with self.stages("sample"):
            length, burn_in = self.learner.length, self.learner.burn_in
            batch = self.replay.sample(self.update, length=length, burn_in=burn_in)
        if batch is None:
            self.waiting.set(self.replay.waits_for())
        with self._telling:
            self._consumed = furthest(self._consumed, self.replay.newest_delivered)
        return batch

    def _all_have_drawn(self) -> bool:
        """Whether every rank has a batch. Collective; brings everyone's books along."""
        with self._telling:
            epoch, consumed = zlib.crc32(self.state.epoch.encode()), self._consumed
        ranks = distributed.exchange(
            self._drawn is not None, self.guard.is_spoilt(), self.replay.debt, epoch,
            *to_numbers(consumed),
        )  # fmt: skip
        ready, debts = [row[0] for row in ranks], [row[2] for row in ranks]
        # players are held back only when the poorest rank has enough, or it would wait for ever
        owed = sum(debts) if self.replay.flow.reuse is None else len(debts) * min(debts)
        self._owed_elsewhere = owed - debts[distributed.rank()]
        with self._telling:  # who has not seen yet that the run was made anew speaks of places in the one before
            epoch = zlib.crc32(self.state.epoch.encode())
            theirs = [from_numbers([int(number) for number in row[4:]]) for row in ranks if row[3] == epoch]
            self._furthest = furthest(self._consumed, *theirs)
        if self._drawn is not None and not all(ready):
            self.waiting.set(f"rank {ready.index(0)}, which waits for sessions of its own")
        if any(row[1] for row in ranks):
            self._recover()
            return False
        return all(ready)

    def _consumption_is_known(self) -> bool:
        """Tells the database, before the update: a session is never learned from twice by accident. Collective."""
        lost = False
        if distributed.leads():
            try:
                self.report()
            except DatabaseLost as error:
                lost, self.worker.error = True, str(error)
        if distributed.anywhere(lost):
            self.waiting.set("the database")
            return False
        return True

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.replay.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    # -- telling the others -------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot | None:
        """The weights of now under the next version; None if they are no numbers. Not to be called during an update."""
        weights = self.learner.get_weights()
        if not self.guard.passes(self.update, weights):
            return None
        self.version += 1
        return Snapshot(self.version, self.update, self.intake.steps, weights)

    def publish(self, snapshot: Snapshot) -> None:
        """Players see version and weights change together. May be called again where it is unknown whether it arrived.

        Raises:
            LeaseLost: another trainer publishes now.
        """
        version, update, step, weights = snapshot
        blob = encode_weights(weights, version=version, update=update, step=step)
        put = functools.partial(
            self.database.put_weights, blob, version, holder=self.holder, update=update, step=step, epoch=self.state.epoch
        )
        try:
            try:
                put()
            except LeaseLost:
                if self.database.get_weights(version=version) != (version, blob):
                    if not self.database.acquire_lease(self.holder):
                        raise
                    put()  # nobody had the lease: it ran out just before; an older version is refused again
        except RunConflict:  # the run is gone, or begins anew: `feed` makes it again, and then asks for a publication
            return
        self._published = version

    def report(self) -> None:
        """The numbers by which players know whether to go on, and how data is used; of all ranks together."""
        flow, ranks = self.replay.flow, distributed.size()
        with self._telling:
            delivered = {"delivered": self.delivered} if self.intake.caught_up else {}  # else the database knows better
            self.database.report(
                **delivered, position=self._furthest, update=self.update, step=self.intake.steps,
                reuse=flow.reuse or 1.0, allowance=flow.allowance and flow.allowance * ranks,
                capacity=flow.buffer_size * ranks,
            )  # fmt: skip

    def beat(self) -> State:
        """A heartbeat, and what was rejected since the last."""
        worker, rejections = self.worker, sum(self.intake.rejected.values())
        if rejections > self._rejections_told and distributed.leads():  # every rank rejects the same
            new, self._rejections_told = rejections - self._rejections_told, rejections
            self.database.count(rejected=new)
        worker.uptime = time.monotonic() - self._began
        worker.steps, worker.steps_per_second = self.intake.steps, self.intake.step_rate.per_second()
        worker.version, worker.lag = self.version if distributed.leads() else self.state.version, self.lag
        worker.waits_for, worker.waits_seconds = self.waiting.reason, self.waiting.seconds
        return self.database.beat(worker)

    def _rejoin(self) -> None:
        """The run vanished (an empty server, a `clear`): makes it again; the training loop publishes when it can."""
        with self._telling, self.intake.lock:
            self._consumed = self._furthest = BEGINNING
            self.intake.begin_anew()
            self._published = -1
            if distributed.leads():
                logger.warning("the run is gone from the database; publishing it again.")
                self.report()  # before the run is there again: none must begin where the one before had ended
                self.database.create({key: value for key, value in self.meta.items() if key != "epoch"})
                self.database.acquire_lease(self.holder)
            state = self.database.state()
            if not state.epoch:  # until rank 0 has made it
                return
            self.version = max(self.version, state.version)
            self.must_publish = distributed.leads()
            self.state = state  # last: had the database been lost on the way, all of it is done again

    # -- numbers ------------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> float:
        """Deliveries so far by all ranks, as the players' allowance counts them."""
        return self.replay.delivered - self._owed_elsewhere

    @property
    def lag(self) -> float:
        """Mean lag in updates of recent batches."""
        return float(np.mean(self._lags)) if self._lags else 0.0

    def arrays(self) -> dict[str, np.ndarray]:
        """What is more than one number, for histograms: lags in updates of the sessions of recent batches [N]."""
        return {"replay/lags": np.concatenate(self._lags_of_sessions)} if self._lags_of_sessions else {}

    def row(self) -> dict[str, Any]:
        """Where training stands, for logs; losses come from the device here. CPU–GPU sync."""
        losses = {
            name: _number(value) for name, value in self.metrics.items() if name != "priorities"
        }  # None: not finite
        replay, steps, received = self.replay, self.intake.steps, max(self.replay.received, 1)
        return {
            "update": self.update, "step": steps, "frames": steps * self.frame_skip, "version": self.version,
            **self.intake.row(),
            "train/updates_per_second": self.update_rate.per_second(),
            "replay/sessions": len(replay), "replay/bytes_per_session": replay.nbytes // replay.flow.buffer_size, "replay/lag": self.lag, "replay/reuse": self.delivered / received,
            **{f"replay/{name}": n for name, n in replay.dropped.items()},
            **{f"time/{name}": share for name, share in self.stages.take().items()},
            **losses,
        }  # fmt: skip


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
