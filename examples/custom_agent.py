"""Your own agent: any policy in any framework. Here one matrix in NumPy learns to balance CartPole.

tinyverse custom_agent.py local -n 300
"""

import gymnasium as gym
import numpy as np

from tinyverse import Agent, Experiment


class LinearAgent(Agent):
    """Goes left or right with the probabilities softmax(observation · w)."""

    def __init__(self, observation_space, action_space):
        self.w = np.zeros((observation_space.shape[0], action_space.n), np.float32)
        self.random = np.random.default_rng()

    def seed(self, seed):
        self.random = np.random.default_rng(seed)

    def probabilities(self, observations):
        scores = np.exp(observations @ self.w)
        return scores / scores.sum(-1, keepdims=True)

    def act(self, observations, state, is_first, greedy=False):
        """Chooses an action for each of the n environments. Agents with a recurrent state use `state` and `is_first`."""
        p = self.probabilities(observations)  # [n, actions]
        drawn = (self.random.random((len(p), 1)) > p.cumsum(-1)[:, :-1]).sum(-1)
        return (p.argmax(-1) if greedy else drawn), state, {}

    def get_weights(self):  # players fetch these …
        return {"w": self.w.copy()}

    def set_weights(self, weights):  # … and pass them to this
        self.w = np.array(weights["w"])


def train_step(agent, batch, learning_rate=0.05, discount=0.95):
    """Makes actions with an above-average return more likely (REINFORCE, Williams 1992)."""
    batch = batch.numpy()  # arrays, time first: rewards [T, B], observations [T+1, B, 4]
    returns, following = np.zeros_like(batch.rewards), 0.0
    for t in reversed(range(len(returns))):
        following = returns[t] = batch.rewards[t] + discount * batch.continues[t] * following
    rows = batch.valid  # without reset rows: the row after an episode's end did not happen
    observations, actions = batch.observations[:-1][rows], batch.actions[rows]
    advantages = returns[rows] - returns[rows].mean()
    slopes = np.eye(agent.w.shape[1])[actions] - agent.probabilities(observations)  # of log π in the scores
    agent.w += learning_rate * (observations.T @ (slopes * advantages[:, None])).astype(np.float32) / len(actions)
    return {"return/mean": returns[rows].mean()}


def make_experiment(env_id="CartPole-v1"):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    return Experiment(
        make_env=make_env, make_agent=LinearAgent, train_step=train_step,
        unroll_length=50, num_envs=16, batch_size=16, publish_every=1,
    )  # fmt: skip
