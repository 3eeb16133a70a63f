"""Config: how data is used, checked."""

from __future__ import annotations

import dataclasses

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import counted


@dataclasses.dataclass(frozen=True)
class Flow:
    """How data is used, checked: what would deadlock is refused here.

    Attributes:
        batch: slices per update.
        buffer_size: sessions kept.
        reuse: deliveries per session on average; None: as fast as the trainer can.
        max_lag: sessions older than this many updates are dropped; None: never.
        min_sessions: sessions in memory before learning begins.
    """

    batch: int = 32
    buffer_size: int = 5000
    reuse: float | None = 1.0
    max_lag: int | None = None
    min_sessions: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "buffer_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch > self.buffer_size:
            raise SettingsError(
                f"a batch of {self.batch} sessions cannot come from a buffer of {self.buffer_size}; raise --buffer-size."
            )
        if not 0 <= self.min_sessions <= self.buffer_size:
            raise SettingsError(
                f"min_sessions is {self.min_sessions} and the buffer holds {self.buffer_size}: learning would never begin. Raise --buffer-size."
            )
        if self.reuse is not None and not self.reuse > 0:
            raise SettingsError(
                f"reuse is {self.reuse}; give a number above 0, or leave it out for as fast as the trainer can."
            )
        if self.max_lag is not None and self.max_lag < 0:
            raise SettingsError(f"max_lag is {self.max_lag}; give a number of updates, 0 or more.")

    @property
    def allowance(self) -> float | None:
        """How far players may run ahead, in deliveries; never less than a batch, or both sides would wait."""
        if self.reuse is None:
            return None
        return max((max(self.min_sessions, self.batch) + self.batch) * self.reuse, self.batch)

    def shared(self, ranks: int) -> Flow:
        """What each of so many ranks does of this.

        Raises:
            SettingsError: the batch cannot be shared evenly.
        """
        if self.batch % ranks:
            raise SettingsError(
                f"a batch of {counted(self.batch, 'session')} cannot be shared evenly by {ranks} ranks; make -b a multiple of {ranks}."
            )
        kept, needed = -(-self.buffer_size // ranks), -(-self.min_sessions // ranks)  # rounded up
        return dataclasses.replace(self, batch=self.batch // ranks, buffer_size=kept, min_sessions=needed)
