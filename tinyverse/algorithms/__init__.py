"""Algorithms, each a `Learner` in one file that can be read from top to bottom."""

from tinyverse.algorithms.vtrace import VTrace

__all__ = ["VTrace"]
