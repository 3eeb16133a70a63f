"""PPO: several small steps over sessions that were just played, each kept near the policy that played them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses, returns
from tinyverse.algorithms.learner import Metrics
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.core.text import counted
from tinyverse.networks.normalization import RewardNormalizer


class Estimates(NamedTuple):
    """A batch, and what its sessions turned out to be worth; all [T, B]."""

    batch: Batch
    values: Tensor
    targets: Tensor
    advantages: Tensor


class PPO(TorchLearner):
    """Proximal policy optimisation (Schulman et al. 2017, eq. 7 and 9) with generalised advantages.

        loss = −min(ρ A, clip(ρ, 1 ± ε) A) + value_cost · ½ (G − V)² − entropy_cost · H(π), mean over rows

    One `train_step` is a whole batch: advantages and targets are made once, of the values before it; then `epochs`
    passes, each over all sessions in `minibatches` parts and a new order. A part is whole sessions, so memory works.
    With the Fresh sampler and `local` this is the paper's algorithm; where players lag, see `VTrace(surrogate_clip=…)`.

    Args:
        agent: its network learns; its sessions carry `behaviour_log_prob`.
        discount, lambda_: γ per step, and λ of `returns.gae`.
        learning_rate, optimizer, max_grad_norm: see `Optimizer`.
        total_updates: train steps over which the learning rate, and the clip with it, fall to 0; None: constant.
        clip: ε.
        value_clip: V may leave its old value by this much, as OpenAI's own code has it; None: by any.
        normalize_advantages: to mean 0 and deviation 1 over the batch.
        return_scale: divide rewards by the running deviation of returns, see `RewardNormalizer`.
        reward_clip: rewards are clipped to ± this, before they are scaled; None leaves them.
    """

    def __init__(
        self,
        agent: TorchAgent,
        *,
        discount: float = 0.99,
        lambda_: float = 0.95,
        learning_rate: float = 2.5e-4,
        epochs: int = 4,
        minibatches: int = 4,
        clip: float = 0.2,
        value_clip: float | None = None,
        value_cost: float = 0.5,
        entropy_cost: float = 0.01,
        normalize_advantages: bool = True,
        return_scale: bool = False,
        reward_clip: float | None = None,
        max_grad_norm: float | None = 0.5,
        optimizer: str = "adam",
        total_updates: int | None = None,
    ) -> None:
        for name, count in (("epochs", epochs), ("minibatches", minibatches)):
            if count < 1:
                raise SettingsError(f"PPO({name}={count}) learns nothing; give 1 or more.")
        steps = None if total_updates is None else total_updates * epochs * minibatches
        super().__init__(
            agent, optimizer, learning_rate=learning_rate, max_grad_norm=max_grad_norm, total_updates=steps
        )
        self.discount, self.lambda_, self.reward_clip = discount, lambda_, reward_clip
        self.epochs, self.minibatches = epochs, minibatches
        self.clip, self.value_clip = clip, value_clip
        self.value_cost, self.entropy_cost = value_cost, entropy_cost
        self.normalize_advantages = normalize_advantages
        self.return_scale = RewardNormalizer(discount).to(agent.device) if return_scale else None

    def train_step(self, batch: Batch) -> Metrics:
        sessions = batch.rewards.shape[1]
        if self.minibatches > sessions:
            raise SettingsError(
                f"PPO cannot cut {counted(sessions, 'session')} into {self.minibatches} minibatches. Raise -b."
            )
        whole = self.estimates(batch)
        for _ in range(self.epochs):
            for part in torch.randperm(sessions, device=self.device).chunk(self.minibatches):
                loss, metrics = self.loss(*(whole if self.minibatches == 1 else _columns(whole, part)))
                norm = self.optimizer.step(loss)
        explained = losses.explained_variance(whole.values, whole.targets, batch.mask)
        scale = {} if self.return_scale is None else {"value/return_scale": self.return_scale.moments.deviation}
        return {**metrics(), "grad_norm": norm, "value/explained_variance": explained, **scale}

    @torch.no_grad()
    def estimates(self, batch: Batch) -> Estimates:
        """What is made once of the values before the first epoch."""
        outputs, _ = self.agent.network(batch.observations, batch.initial_memory, batch.first)
        rewards, values = self.rewards(batch), outputs.values.float()
        advantages = returns.gae(rewards, batch.discounts(self.discount), batch.traces, values, self.lambda_)
        targets = values[:-1] + advantages
        if self.normalize_advantages:
            advantages = losses.normalize(advantages, batch.mask)
        return Estimates(batch, values[:-1], targets, advantages)

    def loss(
        self, batch: Batch, old_values: Tensor, targets: Tensor, advantages: Tensor
    ) -> tuple[Tensor, Callable[[], dict[str, Tensor]]]:
        """The loss of one minibatch, and what makes its metrics (0-d, no gradient), wanted of the last one only."""
        network, mask = self.agent.network, batch.mask
        observations = nest.map(lambda rows: rows[:-1], batch.observations)
        outputs, _ = network(observations, batch.initial_memory, batch.first[:-1])
        policy, values = network.distribution(outputs.policy), outputs.values.float()
        log_rhos = policy.log_prob(batch.actions) - self.behaviour_log_probs(batch)
        clip = self.clip * self.optimizer.remaining

        share = mask / losses.count(mask)  # of a row in the mean
        policy_loss = losses.clipped_policy_gradient(log_rhos, advantages, share, clip, bound=None)
        value_loss = losses.clipped_value(values, old_values, targets, share, self.value_clip)
        loss = policy_loss + self.value_cost * value_loss
        if self.entropy_cost:
            loss = loss + self.entropy_cost * losses.entropy(policy.entropy(), share)

        @torch.no_grad()
        def metrics() -> dict[str, Tensor]:
            return {
                "loss/policy": policy_loss.detach(),
                "loss/value": value_loss.detach(),
                "loss/total": loss.detach(),
                "policy/entropy": losses.masked_mean(policy.entropy(), mask),
                "policy/kl": losses.masked_mean(log_rhos.expm1() - log_rhos, mask),
                "policy/clipped": losses.masked_mean((log_rhos.expm1().abs() > clip).float(), mask),
            }

        return loss, metrics


def _columns(whole: Estimates, part: Tensor) -> Estimates:
    return Estimates(whole.batch.columns(part), *(rows[:, part] for rows in whole[1:]))
