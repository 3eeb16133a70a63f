"""Your own algorithm: a Learner with one method. Here the shortest actor-critic, on CartPole.

tinyverse custom_algorithm.py local -n 200
"""

import gymnasium as gym
from torch import nn

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import TorchLearner, losses, returns
from tinyverse.networks import MLP, ModularNetwork


class ActorCritic(TorchLearner):
    """Learns from one batch at a time. TorchLearner provides weights and checkpoints."""

    def __init__(self, agent, learning_rate, discount):
        super().__init__(agent, learning_rate=learning_rate, max_grad_norm=0.5)
        self.discount = discount

    def train_step(self, batch):
        # the network runs over all sessions again: [T+1, B], one row more than actions
        outputs, _ = self.agent.network(batch.observations, batch.initial_state, batch.is_first)
        policy = self.agent.network.distribution(tuple(rows[:-1] for rows in outputs.policy))
        values = outputs.values[:-1]

        # `discounts` is 0 where an episode terminated, `continues` where it ended in any way
        targets = returns.lambda_returns(
            batch.rewards, batch.discounts(self.discount), batch.continues, outputs.values, lambda_=0.95
        )
        advantages = targets - values.detach()

        # losses are sums over the rows that happened, where `mask` is 1
        loss = losses.policy_gradient(policy.log_prob(batch.actions), advantages, batch.mask)
        loss = loss + 0.5 * losses.value(values, targets, batch.mask)
        loss = loss + 0.01 * losses.entropy(policy.entropy(), batch.mask)
        loss = loss / batch.mask.sum()
        return {"loss/total": loss.detach(), "grad_norm": self.optimizer.step(loss)}


def make_experiment(env_id="CartPole-v1", learning_rate=5e-3, discount=0.98):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(64, 64, activation=nn.Tanh)))

    def make_learner(agent):
        return ActorCritic(agent, learning_rate, discount)

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=32, num_envs=16, batch_size=16, publish_every=1,
    )  # fmt: skip
