"""Algorithms, each a `Learner` in one file that can be read from top to bottom."""

from tinyverse.algorithms.ppo import PPO
from tinyverse.algorithms.vtrace import VTrace

__all__ = ["PPO", "VTrace"]
