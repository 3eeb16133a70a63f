"""Acrobot: swing two joined poles over a line, by the hinge between them. PPO, where luck comes rarely at first.

    tinyverse acrobot.py local -n 150

Every step costs 1 until the line is reached, which chance does in one of twenty episodes. So the policy must stay
curious until then: with `-o entropy_cost=0` it settles on doing nothing well. After 300,000 steps, half a minute of one
core, the mean return is about −80.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO
from tinyverse.networks import MLP, ModularNetwork


def make_experiment(env_id="Acrobot-v1", learning_rate=1e-3, entropy_cost=0.02, unroll_length=128, games=16):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64)))

    def make_learner(agent):
        return PPO(agent, learning_rate=learning_rate, entropy_cost=entropy_cost)

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        games=games,
        batch=games,
        publish_every=1,
    )
