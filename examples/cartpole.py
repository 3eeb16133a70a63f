"""CartPole: balances a pole for 500 steps. The shortest complete experiment on a Gymnasium environment.

    tinyverse cartpole.py local
    tinyverse cartpole.py run --players 1

The mean return over 100 episodes is 475 after 168,000 to 194,000 steps, 20 seconds with `run --players 1`, and 500 after
266,000, 30 seconds (seeds 1 to 3; 2 cores shared with other work). The learning rate falls to 0 over `total_updates`, so
the policy does not get worse again.
"""

import gymnasium as gym
from torch import nn

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO
from tinyverse.networks import MLP, ModularNetwork


def make_experiment(env_id="CartPole-v1", learning_rate=6e-3, total_updates=500, unroll_length=32, num_envs=16):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        trunk = MLP(64, activation=nn.Tanh)
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return PPO(
            agent, learning_rate=learning_rate, total_updates=total_updates, epochs=6, minibatches=1, clip=0.2,
            value_cost=1.0, entropy_cost=0.0, discount=0.98, lambda_=0.8,
        )  # fmt: skip

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=num_envs, batch_size=num_envs, publish_every=1,
    )  # fmt: skip
