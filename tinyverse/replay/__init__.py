"""Replay: the trainer's buffer of sessions, and how batches are drawn from it."""

from typing import TYPE_CHECKING

from tinyverse.core.lazy import importer

if TYPE_CHECKING:
    from tinyverse.replay.buffer import Replay
    from tinyverse.replay.samplers import Fresh, Mixed, Prioritized, Sampler, Uniform

__all__ = ["Fresh", "Mixed", "Prioritized", "Replay", "Sampler", "Uniform"]

__getattr__ = importer(__name__, {
    "Fresh": "samplers", "Mixed": "samplers", "Prioritized": "samplers", "Replay": "buffer", "Sampler": "samplers",
    "Uniform": "samplers",
})  # fmt: skip
