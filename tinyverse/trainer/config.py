"""Config: how a trainer publishes, computes and saves."""

import dataclasses

from tinyverse.core.errors import SettingsError
from tinyverse.replay.config import ReplayConfig


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """The options of a trainer.

    Attributes:
        publish_every: updates between two publications.
        precision: "fp32", or "bf16" for autocast.
        frame_skip: frames per step of the environment, for logs only.
        save_replay: whether checkpoints hold the stored sessions; None: while these take at most 1 GB.
        player_share: see `PlayerQuota`.
    """

    publish_every: int = 10
    precision: str = "fp32"
    frame_skip: int = 1
    save_replay: bool | None = None
    player_share: float = 1.0

    def check(self, replay: ReplayConfig) -> None:
        """Raises SettingsError where sessions would soon be too old to be learned from."""
        max_lag = replay.max_lag
        if max_lag is not None and max_lag < self.publish_every - 1:
            raise SettingsError(
                f"max_lag {max_lag} with weights published every {self.publish_every} updates: all sessions would soon be too old. "
                f"Publish more often (-s {max_lag + 1}) or allow more lag (--max-lag {self.publish_every - 1})."
            )
