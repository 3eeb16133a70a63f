"""Config: how the trainer uses sessions, checked."""

import dataclasses

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import counted


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """How the trainer uses sessions. Settings that would deadlock are refused here.

    Attributes:
        batch_size: slices per update.
        buffer_size: sessions kept.
        reuse: samples per session on average (Reverb: samples per insert; elsewhere: replay ratio); None: as fast as the
            trainer can.
        max_lag: updates; older sessions are dropped; None: never.
        min_sessions: sessions in memory before learning begins.
    """

    batch_size: int = 32
    buffer_size: int = 5000
    reuse: float | None = 1.0
    max_lag: int | None = None
    min_sessions: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "buffer_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch_size > self.buffer_size:
            raise SettingsError(
                f"a batch of {self.batch_size} sessions cannot come from a buffer of {self.buffer_size}; raise --buffer-size."
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
    def max_ahead(self) -> float | None:
        """Samples that players may be ahead of the trainer; at least a batch, or both sides would wait. None: nobody waits."""
        if self.reuse is None:
            return None
        return max((max(self.min_sessions, self.batch_size) + self.batch_size) * self.reuse, self.batch_size)

    def shared(self, ranks: int) -> "ReplayConfig":
        """The part of this that each of so many ranks does. Raises SettingsError where it cannot be shared evenly."""
        if self.batch_size % ranks:
            raise SettingsError(
                f"a batch of {counted(self.batch_size, 'session')} cannot be shared evenly by {ranks} ranks; make -b a multiple of {ranks}."
            )
        kept, needed = -(-self.buffer_size // ranks), -(-self.min_sessions // ranks)  # rounded up
        return dataclasses.replace(self, batch_size=self.batch_size // ranks, buffer_size=kept, min_sessions=needed)
