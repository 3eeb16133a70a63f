"""CartPole: balance a pole for 500 steps. The shortest complete experiment on a Gymnasium environment.

    tinyverse cartpole.py run --players 1

The learning rate falls to 0 over `total_updates`, so that what was reached is kept.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.networks import MLP, ModularNetwork


def make_experiment(env_id="CartPole-v1", learning_rate=2e-3, total_updates=2400, unroll_length=32, games=16):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64)))

    def make_learner(agent):
        return VTrace(
            agent,
            learning_rate=learning_rate,
            total_updates=total_updates,
            entropy_cost=0.005,
            discount=0.98,
            lambda_=0.95,
            reward_clip=None,
            max_grad_norm=0.5,
            optimizer="adam",
        )

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        games=games,
        batch=games,
        publish_every=1,
    )
