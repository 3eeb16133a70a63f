"""Pendulum: swings a pole up with a weak motor and holds it there, with SAC, for continuous actions.

    tinyverse pendulum.py local

It is solved (a mean return of −200 or more) after about 8,000 steps, minutes on one core. `eval --greedy -n 20` after 10,000
gives −140, −156 and −151 for seeds 1 to 3, each ± 18 (4 to 8 minutes; 2 cores shared with other work). The trainer makes
one update for every step. `-o updates_per_step=0.5` learns less from each step and is faster.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms.sac import SAC
from tinyverse.networks import MLP
from tinyverse.networks.squashed import SquashedActor


def make_experiment(env_id="Pendulum-v1", learning_rate=1e-3, discount=0.98, updates_per_step=1.0, hidden=64):
    unroll_length, batch_size = 4, 256

    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(SquashedActor(observation_space, action_space, body=MLP(hidden, hidden)))

    def make_learner(agent):
        return SAC(agent, learning_rate=learning_rate, discount=discount)

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        num_envs=4,
        batch_size=batch_size,
        sampler="uniform",
        reuse=updates_per_step * unroll_length * batch_size,
        buffer_size=25_000,  # sessions: 100,000 steps
        min_sessions=256,
        publish_every=20,
    )
