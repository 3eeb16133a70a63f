"""Replay: the trainer's buffer of sessions, and how batches are drawn from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyverse.core.lazy import imported

if TYPE_CHECKING:
    from tinyverse.replay.buffer import Replay
    from tinyverse.replay.samplers import Fresh, Mixed, Prioritized, Sampler, Uniform

__all__ = ["Fresh", "Mixed", "Prioritized", "Replay", "Sampler", "Uniform"]

_MODULES = {
    "Fresh": "samplers", "Mixed": "samplers", "Prioritized": "samplers", "Replay": "buffer", "Sampler": "samplers",
    "Uniform": "samplers",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    return imported(__name__, name, _MODULES)
