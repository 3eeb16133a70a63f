"""Algorithms, each a `Learner` in one file that can be read from top to bottom."""

from tinyverse.algorithms.a2c import A2C
from tinyverse.algorithms.behaviour_cloning import BehaviourCloning
from tinyverse.algorithms.dqn import DQN, R2D2
from tinyverse.algorithms.ppo import PPO
from tinyverse.algorithms.sac import SAC
from tinyverse.algorithms.vtrace import VTrace

__all__ = ["A2C", "BehaviourCloning", "DQN", "PPO", "R2D2", "SAC", "VTrace"]
