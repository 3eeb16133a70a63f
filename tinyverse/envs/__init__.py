"""Environments for players, in batches. Atari, image and video code is imported by name, since few players need it.

They are imported when first used, because a video needs no gymnasium.
"""

from typing import TYPE_CHECKING

from tinyverse.core.lazy import importer

if TYPE_CHECKING:
    from tinyverse.envs.factory import pool_of
    from tinyverse.envs.pool import Pool, SerialPool, Step, VectorPool

__all__ = ["SerialPool", "Pool", "Step", "VectorPool", "pool_of"]

__getattr__ = importer(
    __name__, {"SerialPool": "pool", "Pool": "pool", "Step": "pool", "VectorPool": "pool", "pool_of": "factory"}
)
