"""Environments for players, in batches. Atari, image and video code is imported by name, since few players need it.

They are imported when first used, because a video needs no gymnasium.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyverse.core.lazy import imported

if TYPE_CHECKING:
    from tinyverse.envs.factory import pool_of
    from tinyverse.envs.pool import Pool, SerialPool, Step, VectorPool

__all__ = ["SerialPool", "Pool", "Step", "VectorPool", "pool_of"]

_MODULES = {"SerialPool": "pool", "Pool": "pool", "Step": "pool", "VectorPool": "pool", "pool_of": "factory"}


def __getattr__(name: str) -> Any:
    return imported(__name__, name, _MODULES)
