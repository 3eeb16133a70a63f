"""Tabular Q-learning on FrozenLake, without torch, as an example of any algorithm in any framework.

An Agent takes and returns NumPy arrays. A Learner gets batches of sessions and may use them as it likes. Here both are a
table, learned off-policy from replay (Watkins 1989), with exploration that decreases during learning.

    tinyverse tabular.py local -n 1500
    tinyverse tabular.py run --players 2

The mean return is 0.96 to 0.99, with 2 % random actions, after 207,000 steps, 8 seconds of one core (seeds 1 to 3; 2 cores,
no GPU).
"""

import gymnasium as gym
import numpy as np

from tinyverse import Agent, Experiment, Learner


class Table(Agent):
    """Q [states, actions] and ε of its ε-greedy choice. Both are weights, so players receive them."""

    def __init__(self, observation_space, action_space):
        self.q = np.zeros((observation_space.n, action_space.n), np.float32)
        self.epsilon = np.ones(1, np.float32)
        self.random = np.random.default_rng()

    def seed(self, seed):
        self.random = np.random.default_rng(seed)

    def act(self, observations, state, is_first, greedy=False):
        noise = self.random.random(self.q[observations].shape) * 1e-6  # breaks ties at random
        actions = np.argmax(self.q[observations] + noise, axis=-1)
        explore = self.random.random(len(actions)) < (0.0 if greedy else self.epsilon[0])
        return np.where(explore, self.random.integers(0, self.q.shape[1], len(actions)), actions), state, {}

    def get_weights(self):
        return {"q": self.q.copy(), "epsilon": self.epsilon.copy()}

    def set_weights(self, weights):
        self.q, self.epsilon = np.array(weights["q"]), np.array(weights["epsilon"])


class QLearning(Learner):
    """Q(s, a) += α (r + γ max Q(s', ·) − Q(s, a)), for every row of every session in the batch."""

    def __init__(self, agent, learning_rate, discount, explore_updates):
        self.agent, self.learning_rate, self.discount, self.explore_updates = (
            agent,
            learning_rate,
            discount,
            explore_updates,
        )

    def train_step(self, batch):
        batch, q = batch.numpy(), self.agent.q
        rows = batch.valid
        states, nexts = batch.observations[:-1][rows], batch.observations[1:][rows]
        actions, ends = batch.actions[rows], batch.terminated[rows]
        targets = batch.rewards[rows] + self.discount * ~ends * q[nexts].max(axis=-1)
        errors = targets - q[states, actions]
        visits, change = np.zeros_like(q), np.zeros_like(q)
        np.add.at(visits, (states, actions), 1)
        np.add.at(change, (states, actions), errors)
        q += self.learning_rate * change / np.maximum(visits, 1)
        self.agent.epsilon = np.maximum(self.agent.epsilon - 1 / self.explore_updates, 0.02).astype(np.float32)
        return {"loss/td": np.mean(errors**2), "policy/epsilon": self.agent.epsilon[0]}

    def get_weights(self):
        return self.agent.get_weights()

    def state_dict(self):
        return self.agent.get_weights()

    def load_state_dict(self, state):
        self.agent.set_weights({name: np.asarray(value) for name, value in state.items()})


def make_experiment(env_id="FrozenLake-v1", slippery=False, learning_rate=0.5, discount=0.97, explore_updates=300):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode, **({"is_slippery": slippery} if "Frozen" in env_id else {}))

    def make_learner(agent):
        return QLearning(agent, learning_rate, discount, explore_updates)

    return Experiment(
        make_env=make_env, make_agent=Table, make_learner=make_learner,
        unroll_length=20, num_envs=8, batch_size=32, sampler="uniform", reuse=4, publish_every=5,
    )  # fmt: skip
