"""A2C: one policy-gradient step per batch of new sessions; the simplest actor-critic."""

from __future__ import annotations

from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses, returns
from tinyverse.algorithms.learner import Metrics
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks.normalization import RewardNormalizer


class A2C(TorchLearner):
    """Advantage actor-critic (Mnih et al. 2016, A3C, algorithm S3, synchronous), with one of two advantages:

        generalised   Â of Schulman et al. 2016, eq. 16, and the target Â + V
        n-step        G − V, where G has n rewards and then V; with n ≥ T the original's returns
        loss = −Â log π(a|o) + value_cost · ½ (G − V)² − entropy_cost · H(π), mean over valid rows

    The sessions must come from the weights that it improves: use the Fresh sampler and `local`, or `max_lag` 0. Where
    players lag, use `VTrace`.

    Args:
        agent: the agent whose network learns.
        discount: γ per step.
        lambda_: λ of `returns.gae`; None: 0.95, unless `n_step` is given.
        n_step: n of `returns.n_step`, instead of `lambda_`.
        learning_rate, optimizer, max_grad_norm, total_updates: see `Optimizer`.
        value_cost, entropy_cost: weights of the loss terms above.
        normalize_advantages: to mean 0 and standard deviation 1 over the batch.
        return_scale: divide rewards by the running standard deviation of returns, see `RewardNormalizer`.
        reward_clip: clip rewards to ± this before they are normalised; None: do not.
    Raises:
        SettingsError: both `lambda_` and `n_step` are given, or `n_step` is below 1.
    """

    def __init__(
        self,
        agent: TorchAgent,
        *,
        discount: float = 0.99,
        lambda_: float | None = None,
        n_step: int | None = None,
        learning_rate: float = 7e-4,
        value_cost: float = 0.5,
        entropy_cost: float = 0.01,
        normalize_advantages: bool = False,
        return_scale: bool = False,
        reward_clip: float | None = None,
        max_grad_norm: float | None = 0.5,
        optimizer: str = "rmsprop",
        total_updates: int | None = None,
    ) -> None:
        if n_step is not None and (n_step < 1 or lambda_ is not None):
            raise SettingsError(
                f"A2C got n_step={n_step} and lambda_={lambda_}; give either n_step of 1 or more, or lambda_."
            )
        super().__init__(
            agent, optimizer, learning_rate=learning_rate, max_grad_norm=max_grad_norm, total_updates=total_updates
        )
        self.discount, self.reward_clip = discount, reward_clip
        self.lambda_, self.n_step = 0.95 if lambda_ is None else lambda_, n_step
        self.value_cost, self.entropy_cost = value_cost, entropy_cost
        self.normalize_advantages = normalize_advantages
        self.return_scale = RewardNormalizer(discount).to(agent.device) if return_scale else None

    def train_step(self, batch: Batch) -> Metrics:
        loss, metrics = self.loss(batch, self.rewards(batch))
        return {**metrics, "grad_norm": self.optimizer.step(loss)}

    def loss(self, batch: Batch, rewards: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, a scalar, and metrics as 0-d tensors without gradient.

        Args:
            rewards: [T, B] as `rewards` returns them.
        """
        network, mask = self.agent.network, batch.mask
        outputs, _ = network(batch.observations, batch.initial_state, batch.is_first)
        policy = network.distribution(nest.map(lambda rows: rows[:-1], outputs.policy))
        values, entropies = outputs.values.float(), policy.entropy()
        targets = self.targets(rewards, batch, values)
        advantages = targets - values[:-1].detach()
        if self.normalize_advantages:
            advantages = losses.normalize(advantages, mask)

        weights, rows = mask * batch.weights, losses.count(mask)
        policy_loss = losses.policy_gradient(policy.log_prob(batch.actions), advantages, weights) / rows
        value_loss = losses.value(values[:-1], targets, weights) / rows
        entropy_loss = losses.entropy(entropies, weights) / rows
        loss = policy_loss + self.value_cost * value_loss + self.entropy_cost * entropy_loss

        metrics = {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": entropy_loss,
            "loss/total": loss,
            "policy/entropy": losses.masked_mean(entropies, mask),
            "value/explained_variance": losses.explained_variance(values[:-1], targets, mask),
        }
        if self.return_scale is not None:
            metrics["value/return_scale"] = self.return_scale.moments.deviation
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def targets(self, rewards: Tensor, batch: Batch, values: Tensor) -> Tensor:
        """Returns the value targets G [T, B], of the kind chosen; `values` is [T+1, B]."""
        rows = rewards, batch.discounts(self.discount), batch.continues, values
        if self.n_step is not None:
            return returns.n_step(*rows, self.n_step)
        return returns.lambda_returns(*rows, self.lambda_)
