"""Your own environment: a gymnasium.Env. Here the agent walks along a corridor, and a hint shows where the door is.

    tinyverse custom_environment.py local -n 100
    tinyverse custom_environment.py eval -n 5

The hint is a reward for learning only. `eval` uses `make_env(evaluation=True)`, which has the environment's own reward.
"""

import gymnasium as gym
import numpy as np

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms.a2c import A2C
from tinyverse.networks import MLP, ModularNetwork


class Corridor(gym.Env):
    """The door is at the right end. Reaching it within 50 steps earns 1."""

    length = 15

    def __init__(self):
        self.observation_space = gym.spaces.Box(0, 1, (1,), np.float32)  # the place
        self.action_space = gym.spaces.Discrete(2)  # left, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # makes self.np_random: take all random numbers from it
        self.place, self.steps = int(self.np_random.integers(self.length // 2)), 0
        return self._seen(), {}

    def step(self, action):
        self.place, self.steps = max(0, self.place + 2 * int(action) - 1), self.steps + 1
        terminated = self.place == self.length  # nothing comes after
        truncated = self.steps == 50 and not terminated  # only the clock ends it: learning looks beyond
        return self._seen(), float(terminated), terminated, truncated, {}

    def _seen(self):
        return np.array([self.place / self.length], np.float32)


class Hint(gym.Wrapper):
    """Rewards progress towards the door (Ng et al. 1999: with γ = 1 the best policy stays the same)."""

    def step(self, action):
        before = self.unwrapped.place
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward + 0.1 * (self.unwrapped.place - before), terminated, truncated, info


def make_experiment(hint=True, learning_rate=3e-3):
    def make_env(evaluation=False):
        return Hint(Corridor()) if hint and not evaluation else Corridor()

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(32)))

    def make_learner(agent):
        return A2C(agent, learning_rate=learning_rate, optimizer="adam")

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=20, num_envs=16, batch_size=16, publish_every=1,
    )  # fmt: skip
