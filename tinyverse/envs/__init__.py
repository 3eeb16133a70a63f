"""Games: what players step. Atari, images and video are imported by name, as few players need them."""

from tinyverse.envs.factory import pool_of
from tinyverse.envs.pool import GamePool, Pool, Step, VectorPool

__all__ = ["GamePool", "Pool", "Step", "VectorPool", "pool_of"]
