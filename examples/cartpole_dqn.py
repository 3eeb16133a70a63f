"""CartPole from replay: double, dueling, prioritised Q-learning. The shortest complete experiment with a Q-function.

    tinyverse cartpole_dqn.py local -n 12000
    tinyverse cartpole_dqn.py run --players 1
    tinyverse cartpole_dqn.py eval -n 20 --greedy

`eval --greedy -n 20` gives 500 ± 0 after 119,000 steps, the 12,000 updates of `local` (seed 1; 12 minutes of one core, which
mostly did other work). The training return is then 413. It is of environments that explore, and the worst of these end
most often. The learning rate falls to 0 over `total_updates`, so the policy does not get worse again.

Two things matter here. The buffer is small, so most sessions show where the newest policy fails. And the trunk is plain
PyTorch, whose biases do not start at 0 as those of `MLP` do. So the kinks of its ReLUs are spread from the start, and the
network learns in time that values fall towards the track's ends.
"""

import gymnasium as gym
from torch import nn

from tinyverse import Experiment
from tinyverse.agents import QAgent
from tinyverse.algorithms import DQN
from tinyverse.networks import ModularNetwork


def make_experiment(
    env_id="CartPole-v1", learning_rate=1e-3, total_updates=12000, epsilon=0.4, reuse=16.0, num_envs=16
):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        inputs = observation_space.shape[0]
        trunk = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        network = ModularNetwork(observation_space, action_space, trunk=trunk)
        return QAgent(network, action_space, epsilon=epsilon, alpha=3.0)

    def make_learner(agent):
        return DQN(agent, learning_rate=learning_rate, total_updates=total_updates, n=3, target_every=50)

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=10, num_envs=num_envs, batch_size=16, sampler="prioritized", reuse=reuse, buffer_size=1000,
        min_sessions=64, publish_every=5,
    )  # fmt: skip
