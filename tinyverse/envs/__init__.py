"""Environments for players, in batches. Atari, image and video code is imported by name, since few players need it."""

from tinyverse.envs.factory import pool_of
from tinyverse.envs.pool import GamePool, Pool, Step, VectorPool

__all__ = ["GamePool", "Pool", "Step", "VectorPool", "pool_of"]
