"""CartPole from replay: double, dueling, prioritised Q-learning. The shortest complete experiment with a Q-function.

    tinyverse cartpole_dqn.py local -n 5500
    tinyverse cartpole_dqn.py run --players 1
    tinyverse cartpole_dqn.py eval -n 20 --greedy

The return that training shows is of games that explore, of which the worst end most often; `eval --greedy` shows what
was learned. Large steps and a target network that follows soon find a good policy among many; the learning rate falls
to 0 over `total_updates`, so that it stays.
"""

import gymnasium as gym

from tinyverse import Experiment
from tinyverse.algorithms import DQN
from tinyverse.networks import MLP, ModularNetwork
from tinyverse.q_agent import QAgent


def make_experiment(env_id="CartPole-v1", learning_rate=2.5e-3, total_updates=5500, epsilon=0.4, reuse=16.0, games=16):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        network = ModularNetwork(observation_space, action_space, trunk=MLP(128, 128))
        return QAgent(network, action_space, epsilon=epsilon, alpha=3.0)

    def make_learner(agent):
        return DQN(agent, learning_rate=learning_rate, total_updates=total_updates, discount=0.98, n=1, target_every=20)

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=10,
        games=games,
        batch=16,
        sampler="prioritized",
        reuse=reuse,
        buffer_size=10_000,
        min_sessions=64,
        publish_every=5,
    )
