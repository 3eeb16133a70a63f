"""LunarLander: lands a vehicle between two flags, with PPO and the environment's rewards of −100 to 100.

    pip install -e '.[box2d]'
    tinyverse lunarlander.py local -n 400
    tinyverse lunarlander.py eval -n 20 --greedy

The mean return over 100 episodes is 200 after 489,000, 445,000 and 689,000 steps, 1 to 4 minutes. After 400 updates, 0.8 M
steps, `eval --greedy -n 20` gives 262 ± 5, 244 ± 9 and 251 ± 12 (`local`, seeds 1 to 3, the first with 350 updates; one core
each, of 2 that did other work too). For learning, rewards are divided by the standard deviation of returns
(`return_scale`), so values have a size of about 1.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO
from tinyverse.networks import MLP, ModularNetwork


def make_experiment(
    env_id="LunarLander-v3",
    learning_rate=1e-3,
    total_updates=400,
    entropy_cost=0.01,
    discount=0.999,
    unroll_length=128,
    num_envs=16,
):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64), value_trunk=MLP(64, 64)))

    def make_learner(agent):
        return PPO(
            agent, learning_rate=learning_rate, total_updates=total_updates, entropy_cost=entropy_cost,
            discount=discount, lambda_=0.98, return_scale=True,
        )  # fmt: skip

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=num_envs, batch_size=num_envs, publish_every=1,
    )  # fmt: skip
