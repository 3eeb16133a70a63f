"""Acrobot: swings two joined poles over a line by the hinge between them, with PPO. Random actions seldom succeed.

    tinyverse acrobot.py local -n 150
    tinyverse acrobot.py local -n 500 -o algorithm=a2c -o unroll_length=32 -o entropy_cost=0.01

Every step costs 1 until the line is reached. Random actions reach it in one of twenty episodes, so the policy must
explore until then. With `-o entropy_cost=0` it stops too early. After 300,000 steps, half a minute of one
core, the mean return is about −80.

A2C needs three more things:

* Advantages that are not normalised. If all episodes are equally bad, normalising makes their noise as large as a
  success, and the policy stays at −500.
* Rewards divided by the standard deviation of returns, which replaces the normalisation.
* A separate network for the value function. A shared one learned more slowly (one seed).

It reaches −87 after 234,000 steps, a minute and a half (seed 2; 2 cores shared with other work).
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import A2C, PPO
from tinyverse.core.errors import SettingsError
from tinyverse.networks import MLP, ModularNetwork


def make_experiment(
    env_id="Acrobot-v1", algorithm="ppo", learning_rate=1e-3, entropy_cost=0.02, unroll_length=128, num_envs=16
):
    if algorithm not in ("ppo", "a2c"):
        raise SettingsError(f"algorithm={algorithm!r} is unknown. Use ppo or a2c.")

    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        apart = MLP(64, 64) if algorithm == "a2c" else None
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64), value_trunk=apart))

    def make_learner(agent):
        if algorithm == "ppo":
            return PPO(agent, learning_rate=learning_rate, entropy_cost=entropy_cost)
        options = {"optimizer": "adam", "return_scale": True}
        return A2C(agent, learning_rate=learning_rate, entropy_cost=entropy_cost, **options)

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=num_envs, batch_size=num_envs, publish_every=1,
    )  # fmt: skip
