"""Catch: a ball falls, a paddle catches it. A whole experiment with its own environment, learned in seconds.

    tinyverse catch.py local -n 400

The mean return is 0.96 to 1.00 (at most 1) after 104,000 steps, 7 seconds of one core (seeds 1 to 3; 2 cores, no GPU).
"""

import gymnasium as gym
import numpy as np

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.networks import MLP, ModularNetwork


class Catch(gym.Env):
    """A board of 10 × 5 cells. The ball falls a row per step. The reward at the end is 1 if the paddle is under it, else −1."""

    rows, columns = 10, 5
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(0, 1, (self.rows, self.columns), np.float32)
        self.action_space = gym.spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball = np.array([0, self.np_random.integers(self.columns)])
        self.paddle = self.columns // 2
        return self._board(), {}

    def step(self, action):
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self.columns - 1))
        self.ball[0] += 1
        over = bool(self.ball[0] == self.rows - 1)
        reward = (1.0 if self.ball[1] == self.paddle else -1.0) if over else 0.0
        return self._board(), reward, over, False, {}

    def render(self):
        return np.repeat((self._board()[..., None] * 255).astype(np.uint8), 3, axis=-1)

    def _board(self):
        board = np.zeros((self.rows, self.columns), np.float32)
        board[self.rows - 1, self.paddle] = board[tuple(self.ball)] = 1
        return board


def make_experiment(learning_rate=3e-3, entropy_cost=0.02, unroll_length=9, num_envs=32):
    def make_env(evaluation=False, render_mode=None):
        return Catch(render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64)))

    def make_learner(agent):
        return VTrace(agent, learning_rate=learning_rate, entropy_cost=entropy_cost, optimizer="adam")

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=num_envs, batch_size=num_envs, publish_every=1,
        keys={"left": 0, "": 1, "right": 2},
    )  # fmt: skip
