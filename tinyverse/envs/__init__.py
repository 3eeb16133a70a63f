"""Games: what players step. Atari, image preprocessing and video are imported by name, so that none of them costs a player of CartPole anything."""

from tinyverse.envs.pool import GamePool, Pool, Step, VectorPool, pool_of

__all__ = ["GamePool", "Pool", "Step", "VectorPool", "pool_of"]
