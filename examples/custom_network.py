"""Your own network: any torch module with three methods. Here the policy and the value function share nothing.

    tinyverse custom_network.py local -n 200

To replace only a part, give ModularNetwork(trunk=…, body=…) any module from [N, …] to [N, D].
"""

import gymnasium as gym
from torch import nn

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.networks import Categorical, Outputs


class TwoTowers(nn.Module):
    """A policy and a value function in separate networks, for vector observations and one discrete action."""

    def __init__(self, observation_space, action_space, size):
        super().__init__()
        inputs = observation_space.shape[0]
        self.policy = nn.Sequential(nn.Linear(inputs, size), nn.Tanh(), nn.Linear(size, int(action_space.n)))
        self.value = nn.Sequential(nn.Linear(inputs, size), nn.Tanh(), nn.Linear(size, 1))

    def initial_state(self, n):
        """Returns the recurrent state of n environments at the start of an episode: tensors [n, …], or () for none."""
        return ()

    def forward(self, observations, state, is_first):
        """Maps rows [T, B, …]: T is 1 in a player, a whole session in the trainer. `is_first` [T, B] resets the state."""
        values = self.value(observations).squeeze(-1)
        return Outputs(policy=(self.policy(observations),), values=values), state

    def distribution(self, policy):
        """Makes a distribution of the tensors in `Outputs.policy`, with log_prob, entropy, sample and mode."""
        return Categorical(logits=policy[0])


def make_experiment(env_id="CartPole-v1", size=64, learning_rate=5e-3):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(TwoTowers(observation_space, action_space, size))

    def make_learner(agent):
        return VTrace(agent, learning_rate=learning_rate, optimizer="adam", max_grad_norm=0.5)

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=32, num_envs=16, batch_size=16, publish_every=1,
    )  # fmt: skip
