"""RateLimiter: keeps players and trainer in step, by the samples that each inserted session is still owed.

    deficit = reuse · inserted − sampled

The trainer waits while the deficit is less than a batch, players wait while it is more than `max_ahead`. Neither waits for
ever: a lost, rejected or expired session counts as sampled, and the deficit never exceeds what the kept sessions can carry
(`reuse` for each of them or one batch, whichever is more; nothing where none is kept).

Reverb has the same under these names (Cassirer et al. 2021, "Reverb: A Framework For Experience Replay", rate limiters).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tinyverse.replay.config import ReplayConfig


class RateLimiter:
    """Counts sessions and their samples.

    Args:
        pending: for a sampler that draws each session a fixed number of times: how many wait for their first time. All
            others then count as sampled. None: the limiter counts samples as they are drawn.
    Attributes:
        inserted: sessions that came, lost and rejected ones too.
        drawn: samples that were drawn, or are counted as such.
    """

    def __init__(self, config: ReplayConfig, pending: Callable[[], int] | None = None) -> None:
        self.config, self._pending = config, pending
        self.inserted = 0
        self.drawn = 0.0
        self._restored = False  # from a checkpoint, and not restarted yet

    @property
    def reuse(self) -> float:
        """Samples per session; where the trainer draws as fast as it can, 1."""
        return self.config.reuse or 1.0

    @property
    def sampled(self) -> float:
        """Samples so far."""
        return self.drawn if self._pending is None else self.reuse * (self.inserted - self._pending())

    @property
    def deficit(self) -> float:
        """Samples that the inserted sessions are still owed; below 0 where nothing bounds the reuse."""
        return self.reuse * self.inserted - self.sampled

    @property
    def missing(self) -> int:
        """Sessions that must come before the next batch may be drawn."""
        if self.config.reuse is None or self._pending is not None:
            return 0
        return max(0, math.ceil((self.config.batch_size - self.deficit) / self.reuse))

    def write_off(self, count: int = 1) -> None:
        """Counts sessions that came and will never be drawn: lost, rejected or too old."""
        self.inserted += count
        self.drawn += count * self.reuse

    def forgive(self, kept: int) -> None:
        """Counts as sampled what sessions that left memory were owed and the `kept` ones cannot carry."""
        if self.config.reuse is not None:
            carried = max(self.reuse * kept, self.config.batch_size) if kept else 0.0
            self.drawn = max(self.drawn, self.reuse * self.inserted - carried)

    def restart(self, inserted: int, kept: int) -> None:
        """After a restart: of the sessions inserted so far, only those of a restored memory are owed what they still were."""
        owed = self.reuse * self.inserted - self.drawn if self._restored else 0.0
        self.inserted, self._restored = inserted, False
        self.drawn = self.reuse * inserted - owed
        self.forgive(kept)

    def state_dict(self) -> dict[str, Any]:
        """The counts, under the names that checkpoints have for them."""
        return {"received": self.inserted, "_delivered": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any], reuse: float | None) -> None:
        """Takes the counts of a checkpoint; what was owed by another configured `reuse` is not owed now."""
        self.inserted, self.drawn = state["received"], state["_delivered"]
        self._restored = reuse == self.config.reuse
