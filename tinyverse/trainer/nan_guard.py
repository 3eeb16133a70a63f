"""NanGuard: keeps a trainer that learned NaN from publishing or saving it.

Asking a GPU whether a loss is finite makes it wait, so the guard fetches the answers beside the updates that follow.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from tinyverse.core import codec, nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import CodecError, NotANumber
from tinyverse.core.files import atomic_write
from tinyverse.core.text import counted
from tinyverse.core.weights import Weights

if TYPE_CHECKING:
    from tinyverse.trainer.ranks import SingleProcess
    from tinyverse.trainer.run_folder import RunFolder

CHECKED = ("loss/", "grad_norm")  # beginnings of the metrics that must be finite
NAMED = 3  # players in a message
UNANSWERED = 3  # updates; for an older one's answer the guard waits


@dataclasses.dataclass(frozen=True)
class BadUpdate:
    """An update that gave NaN or infinity."""

    update: int
    batch: Batch | None  # None: only the weights show it, so the update that did it is unknown
    names: tuple[str, ...]  # of the metrics, or "weights"

    def write(self, folder: Path) -> Path:
        """Keeps the batch for inspection, as plain safetensors; returns the file."""
        path = folder / f"nan-update-{self.update:09d}.safetensors"
        leaves: dict[str, Any] = {}
        for name, tree in vars(self.batch).items() if self.batch else ():
            if name not in ("burn_in", "sources") and tree is not None:
                arrays = nest.map(lambda leaf: leaf.detach().cpu().numpy(), tree)
                leaves |= nest.flatten(arrays, f"batch.{name}")
        about = {"update": str(self.update), "not_finite": ", ".join(self.names)}
        about["sessions"] = json.dumps(self.batch.sources if self.batch else ())
        atomic_write(path, codec.encode(leaves, about))
        return path


class NanGuard:
    """Checks updates by their losses and gradients, and weights by themselves. `folder` keeps the bad batch."""

    def __init__(self, folder: RunFolder | None = None) -> None:
        self.folder = folder
        self.bad: BadUpdate | None = None
        self._asked: deque[tuple[int, Batch, Mapping[str, Any], torch.Tensor, Any]] = deque()

    def note(self, update: int, batch: Batch, metrics: Mapping[str, Any]) -> None:
        """Asks whether an update was sound."""
        checked = {name: value for name, value in metrics.items() if name.startswith(CHECKED)}
        tensors = [value.detach() for value in checked.values() if isinstance(value, torch.Tensor)]
        sound = torch.tensor(all(math.isfinite(v) for v in checked.values() if not isinstance(v, torch.Tensor)))
        done = None
        if tensors:
            flags = torch.stack([tensor.isfinite().all().to(tensors[0].device) for tensor in tensors])
            sound = (flags.all() & sound.to(flags.device)).to("cpu", non_blocking=True)
            if flags.is_cuda:
                done = torch.cuda.Event()
                done.record()
        self._asked.append((update, batch, checked, sound, done))

    def is_bad(self, wait: bool = False) -> bool:
        """Whether any update so far was bad; with `wait`, the newest ones too. CPU–GPU sync then."""
        while self._asked and self.bad is None:
            update, batch, metrics, sound, done = self._asked[0]
            if done is not None and not done.query():
                if not wait and len(self._asked) <= UNANSWERED:
                    break
                done.synchronize()
            self._asked.popleft()
            if not bool(sound):
                names = tuple(name for name, value in metrics.items() if not math.isfinite(float(value)))
                self.bad = BadUpdate(update, batch, names)
        return self.bad is not None

    def passes(self, update: int, weights: Weights) -> bool:
        """Whether these weights, a copy in this machine's memory, may be published or saved."""
        if self.is_bad(wait=True):
            return False
        if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in weights.values()):
            return True
        self.bad = BadUpdate(update, None, ("weights",))
        return False

    def stop(self, update: int, ranks: SingleProcess) -> NoReturn:
        """Keeps the batch of the bad update (or names the newest, where only another rank knows it); raises NotANumber.

        Remembers whose sessions it learned from, so that no trainer of this run takes them again. Collective.
        """
        bad, kept = self.bad, ""
        sources = ranks.gather(bad.batch.sources if bad and bad.batch else ())
        if self.folder and sources:
            self.folder.quarantine(update, sources)
        if bad and self.folder and bad.batch:
            try:
                kept = f" The batch is kept in {bad.write(self.folder.path)}."
            except (OSError, CodecError) as error:
                kept = f" The batch cannot be kept ({error})."
        names = ", ".join(bad.names) if bad else "another rank"
        raise NotANumber(
            f"update {bad.update if bad else update} learned what is no number ({names}).{kept} Nothing of it was published "
            f"or saved.{_senders(sources)} Lower the learning rate, clip rewards or gradients, and start again: training goes "
            "on from the last checkpoint."
        )


def _senders(sources: Sequence[str]) -> str:
    """Who sent the sessions of a bad update, those with most first."""
    if not sources:
        return ""
    counts = Counter(source.rpartition(":")[0][:40] for source in sources).most_common()
    names = ", ".join(f"{count} of {player}" for player, count in counts[:NAMED])
    others = f" and {counted(len(counts) - NAMED, 'other player')}" if len(counts) > NAMED else ""
    return f" Its {counted(len(sources), 'session')} ({names}{others}) will not be learned from again."
