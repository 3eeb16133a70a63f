"""Checkpoints: what a trainer keeps of itself on disk, and how another one takes it up.

The checkpoint is the truth: the database may be lost at any time. It holds the learner, the counters, the random numbers,
the cursor in the run's sessions and, where they are not too many, the sessions in the replay.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinyverse.core import distributed, rng
from tinyverse.core.errors import RunConflict, SpecError, TinyverseError
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import is_behind
from tinyverse.replay import checkpoint as replay_checkpoint

if TYPE_CHECKING:
    from tinyverse.trainer.trainer import Trainer

logger = logging.getLogger(__name__)

REPLAY_SAVED = 10**9  # bytes of stored sessions that a checkpoint holds unless it is told to, or not to


class Checkpoints:
    """Saves a trainer into its folder, and restores it from there."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.folder, self.save_replay = trainer, trainer.folder, trainer.config.save_replay
        self._saved = -1  # update of the newest checkpoint

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint, unless nothing was learned since the last, or NaN; beside learning, unless it is to `wait`.

        Raises:
            LeaseLost: another trainer has taken over, so nothing is written.
            TinyverseError: with `wait`, it could not be written.
        """
        trainer, folder = self.trainer, self.folder
        if folder is None or (folder.writing and not wait):
            return
        if not folder.finish():
            self._saved = -1
        update = trainer.update
        if update == self._saved:
            return
        trainer.publisher.check_lease()
        with trainer.stages("save"):
            contents = self.contents()
            if not trainer.guard.passes(update, contents["weights"]):
                return
            state = contents["replay"]
            sessions = replay_checkpoint.sessions_of(trainer.replay, state) if state else None
            try:
                folder.save(update, contents, sessions, wait=wait)
            except (OSError, RuntimeError) as error:
                raise TinyverseError(f"no checkpoint of update {update} could be written: {error}.") from error
        self._saved = update

    def contents(self) -> dict[str, Any]:
        """All that a checkpoint holds, but for the stored sessions themselves."""
        trainer, feeder, replay = self.trainer, self.trainer.feeder, self.trainer.replay
        with feeder.storing:
            return {
                "learner": trainer.learner.state_dict(), "weights": dict(trainer.learner.get_weights()),
                "update": trainer.update, "version": trainer.version, "meta": trainer.publisher.meta, "rng": rng.get_state(),
                "run_id": feeder.state.run_id, "consumed": feeder.cursor.learned, **feeder.state_dict(),
                "drawing": json.dumps(replay.random.bit_generator.state),
                "replay": self._replay_state() if feeder.caught_up else None,
            }  # fmt: skip

    def _replay_state(self) -> dict[str, Any] | None:
        if self.save_replay is False:
            return None
        state = replay_checkpoint.state_of(replay := self.trainer.replay)
        nbytes = len(state["numbers"]) * replay.ring.bytes.shape[1]
        if self.save_replay or nbytes <= REPLAY_SAVED:
            return state
        logger.warning(
            "the stored sessions take %.1f GB: checkpoints leave them out, unless --save-replay.", nbytes / 1e9
        )
        self.save_replay = False
        return None

    def restore(self) -> None:
        """Takes up the newest checkpoint; without a folder or a checkpoint in it, the weights that were published.

        Raises:
            RunConflict: the checkpoint does not fit the experiment.
        """
        trainer = self.trainer
        trainer.feeder.go_on_from(trainer.state.cursor)
        trainer.feeder.quarantined = self.folder.quarantined() if self.folder else set()
        checkpoint = self.folder.load() if self.folder else None
        if checkpoint is not None:
            self._take_up(checkpoint)
        elif (found := trainer.database.get_weights()) is not None:
            weights, numbers = decode_weights(found[1])
            trainer.agent.set_weights(weights)
            trainer.publisher.version, trainer.update = found[0], numbers["update"]
            trainer.feeder.steps = numbers["step"]

    def _take_up(self, checkpoint: Mapping[str, Any]) -> None:
        trainer, feeder, replay = self.trainer, self.trainer.feeder, self.trainer.replay
        try:
            trainer.learner.load_state_dict(checkpoint["learner"])
        except (RuntimeError, ValueError, LookupError, SpecError) as error:  # of torch, of NumPy, of a dict, ours
            raise RunConflict(
                f"the checkpoint in {self.folder and self.folder.path}/ does not fit this experiment's network or optimizer "
                f"({str(error).splitlines()[0]} …). Start anew with --fresh, from its weights with --init-from if they fit."
            ) from error
        trainer.update = self._saved = checkpoint["update"]
        trainer.publisher.version = max(checkpoint["version"], trainer.state.version)
        feeder.load_counters(checkpoint)
        if "rng" not in checkpoint:  # of a version before these were kept
            return
        rng.set_state(checkpoint["rng"])
        replay.random.bit_generator.state = json.loads(checkpoint["drawing"])
        same_run = checkpoint.get("run_id", checkpoint.get("epoch")) == trainer.state.run_id
        if same_run:
            feeder.cursor.counted = checkpoint["position"]
        if checkpoint["replay"] is None or self.save_replay is False or not self.folder:
            return
        try:
            replay_checkpoint.restore(replay, checkpoint["replay"], self.folder.stored.read(checkpoint["sessions"]))
        except SpecError as error:
            logger.warning("%s They are left out.", error)
            return
        replay.discard(feeder.quarantined)
        if not same_run:
            replay.forget_positions()
            return
        feeder.load_cursor(checkpoint)
        if replay.sampler.reuse is not None and not is_behind(feeder.cursor.learned, checkpoint["consumed"]):
            replay.mark_seen(feeder.cursor.learned)  # updates that were lost had learned from them

    def level(self) -> None:
        """Every rank takes over what rank 0 has restored. Collective; of a single process, nothing."""
        trainer, feeder = self.trainer, self.trainer.feeder
        if trainer.ranks.size == 1:
            return
        first = distributed.broadcast({
            "learner": trainer.learner.state_dict(), "update": trainer.update, "version": trainer.version,
            "consumed": feeder.cursor.learned, "counted": feeder.cursor.counted,
            "quarantined": list(feeder.quarantined), **feeder.counters(),
        })  # fmt: skip
        trainer.learner.load_state_dict(first["learner"])
        trainer.update, trainer.publisher.version = first["update"], first["version"]
        feeder.go_on_from(first["consumed"])
        feeder.load_counters(first)
        feeder.cursor.counted = first["counted"]
        feeder.quarantined = set(first["quarantined"])
