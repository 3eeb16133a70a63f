"""Guard: sees to it that a trainer which learned NaN neither publishes nor saves it, but stops or goes back.

To ask a GPU whether a loss is finite would make it stand still, so the answer is fetched beside the updates that follow.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyverse.algorithms.learner import Learner
from tinyverse.core import codec, distributed, nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import CodecError, NotANumber, SettingsError
from tinyverse.core.weights import Weights
from tinyverse.replay.buffer import Replay
from tinyverse.trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

JUDGED = ("loss/", "grad_norm")  # what metrics begin with that must be finite; others may have nothing to say
UNANSWERED = 3  # updates at most whose answers are on their way
ROLLBACKS = 3  # to one and the same checkpoint; then training stops


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """An update that gave something else than numbers."""

    update: int
    batch: Batch | None  # None: it was seen in the weights only, nobody knows since when
    names: tuple[str, ...]  # of the metrics, or "weights"

    def write(self, folder: Path) -> Path:
        """Keeps the batch for inspection, as plain safetensors; returns the file."""
        path = folder / f"nan-update-{self.update:09d}.safetensors"
        leaves = {} if self.batch is None else nest.flatten(_plain(self.batch), "batch")
        path.write_bytes(codec.encode(leaves, {"update": str(self.update), "not_finite": ", ".join(self.names)}))
        return path


class Guard:
    """Judges updates by their losses and gradients, and weights by themselves.

    Args:
        on_nan: "stop", or "rollback" to the last good checkpoint.
        folder: that holds it, and is to keep the batch; None: there is none, as on all ranks but 0.
    """

    def __init__(self, on_nan: str = "stop", folder: RunFolder | None = None) -> None:
        if on_nan not in ("stop", "rollback"):
            raise SettingsError(f"on_nan is {on_nan!r}; there are stop and rollback.")
        if on_nan == "rollback" and folder is None and distributed.is_rank_zero():
            raise SettingsError("on_nan='rollback' wants a folder with checkpoints to go back to.")
        self.on_nan, self.folder = on_nan, folder
        self.spoilt: Spoilt | None = None
        self.rollbacks = 0
        self._rolled_back = (-1, 0)  # to which update's checkpoint, how often
        self._asked: deque[tuple[int, Batch, Mapping[str, Any], torch.Tensor, Any]] = deque()

    def note(self, update: int, batch: Batch, metrics: Mapping[str, Any]) -> None:
        """Asks whether an update was sound."""
        judged = {name: value for name, value in metrics.items() if name.startswith(JUDGED)}
        tensors = [value.detach() for value in judged.values() if isinstance(value, torch.Tensor)]
        sound = torch.tensor(all(math.isfinite(v) for v in judged.values() if not isinstance(v, torch.Tensor)))
        done = None
        if tensors:
            flags = torch.stack([tensor.isfinite().all().to(tensors[0].device) for tensor in tensors])
            sound = (flags.all() & sound.to(flags.device)).to("cpu", non_blocking=True)
            if flags.is_cuda:
                done = torch.cuda.Event()
                done.record()
        self._asked.append((update, batch, judged, sound, done))

    def is_spoilt(self, wait: bool = False) -> bool:
        """Whether any update so far was; with `wait`, the newest ones too. CPU–GPU sync then."""
        while self._asked and self.spoilt is None:
            update, batch, metrics, sound, done = self._asked[0]
            if done is not None and not done.query():
                if not wait and len(self._asked) <= UNANSWERED:
                    break
                done.synchronize()
            self._asked.popleft()
            if not bool(sound):
                names = tuple(name for name, value in metrics.items() if not math.isfinite(float(value)))
                self.spoilt = Spoilt(update, batch, names)
        return self.spoilt is not None

    def passes(self, update: int, weights: Weights) -> bool:
        """Whether these weights, a copy in this machine's memory, may be shown to others."""
        if self.is_spoilt(wait=True):
            return False
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in weights.values()):
            return True
        self.spoilt = Spoilt(update, None, ("weights",))
        return False

    def recover(self, update: int, learner: Learner, replay: Replay) -> None:
        """Takes back what was learned since the last checkpoint, and drops the sessions of the batch that spoilt it.
        Collective: whichever rank is spoilt, all go back.

        Args:
            update: the newest, for where only another rank knows which was wrong.
        Raises:
            NotANumber: it is not to be rolled back, there is no checkpoint, or going back did not help.
        """
        spoilt, kept = self.spoilt, ""
        names = ", ".join(spoilt.names) if spoilt else "another rank"
        if spoilt and self.folder and spoilt.batch:
            try:
                kept = f" The batch is kept in {spoilt.write(self.folder.path)}."
            except (OSError, CodecError) as error:
                kept = f" The batch cannot be kept ({error})."
        what = f"update {spoilt.update if spoilt else update} learned what is no number ({names}).{kept}"
        last = None
        if self.folder and self.on_nan == "rollback":
            self.folder.finish()
            last = self.folder.load()
        to, (before, times) = distributed.broadcast(last["update"] if last else -1), self._rolled_back
        self._rolled_back = (to, times + 1 if to == before else 1)
        if to < 0 or self._rolled_back[1] > ROLLBACKS:
            tried = f" It did so after each of {ROLLBACKS} rollbacks to update {to}." if to >= 0 else ""
            raise NotANumber(
                f"{what}{tried} Nothing of it was published or saved. Lower the learning rate, clip rewards or gradients, "
                "and start again: training goes on from the last checkpoint."
            )
        logger.warning("%s Going back to the checkpoint of update %d.", what, to)
        learner.load_state_dict(distributed.broadcast(last["learner"] if last else None))
        if spoilt and spoilt.batch:
            replay.discard(spoilt.batch.slots)
        self.forget()
        self.rollbacks += 1

    def forget(self) -> None:
        """What was learned has been taken back."""
        self.spoilt = None
        self._asked.clear()


def _plain(batch: Batch) -> dict[str, nest.Tree]:
    trees = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name != "burn_in"}
    return {
        name: nest.map(lambda leaf: leaf.detach().cpu().numpy(), tree)
        for name, tree in trees.items()
        if tree is not None
    }
