"""Guard: sees to it that a trainer which learned NaN neither publishes nor saves it.

To ask a GPU whether a loss is finite would make it stand still, so the answer is fetched beside the updates that follow.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyverse import codec, nest
from tinyverse.agent import Weights
from tinyverse.batch import Batch
from tinyverse.errors import SettingsError

JUDGED = ("loss/", "grad_norm")  # what metrics begin with that must be finite; others may have nothing to say
UNANSWERED = 3  # updates at most whose answers are on their way


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
    """

    def __init__(self, on_nan: str = "stop") -> None:
        if on_nan not in ("stop", "rollback"):
            raise SettingsError(f"on_nan is {on_nan!r}; there are stop and rollback.")
        self.on_nan = on_nan
        self.spoilt: Spoilt | None = None
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
