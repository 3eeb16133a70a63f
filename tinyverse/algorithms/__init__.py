"""Algorithms: each is a `Learner` in one file that can be read from top to bottom."""

from typing import TYPE_CHECKING

from tinyverse.core.lazy import importer

if TYPE_CHECKING:
    from tinyverse.algorithms.a2c import A2C
    from tinyverse.algorithms.behaviour_cloning import BehaviourCloning
    from tinyverse.algorithms.dqn import DQN
    from tinyverse.algorithms.function_learner import FunctionLearner
    from tinyverse.algorithms.learner import Learner
    from tinyverse.algorithms.ppo import PPO
    from tinyverse.algorithms.r2d2 import R2D2
    from tinyverse.algorithms.sac import SAC
    from tinyverse.algorithms.torch_learner import Optimizer, TorchLearner
    from tinyverse.algorithms.vtrace import VTrace

__all__ = [
    "A2C", "DQN", "PPO", "R2D2", "SAC", "BehaviourCloning", "FunctionLearner", "Learner", "Optimizer", "TorchLearner", "VTrace",
]  # fmt: skip

__getattr__ = importer(__name__, {
    "A2C": "a2c", "BehaviourCloning": "behaviour_cloning", "DQN": "dqn", "FunctionLearner": "function_learner", "Learner": "learner", "Optimizer": "torch_learner",
    "PPO": "ppo", "R2D2": "r2d2", "SAC": "sac", "TorchLearner": "torch_learner", "VTrace": "vtrace",
})  # fmt: skip
