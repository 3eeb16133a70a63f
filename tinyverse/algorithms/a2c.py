"""A2C: one policy-gradient step per batch of new sessions; the simplest actor-critic."""

from typing import Any

from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses, returns
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError


class A2C(TorchLearner):
    """Advantage actor-critic (Mnih et al. 2016, A3C, algorithm S3, synchronous), with one of two advantages:

        generalised   Â of Schulman et al. 2016, eq. 16, and the target Â + V
        n-step        G − V, where G has n rewards and then V; with n ≥ T the original's returns
        loss = −Â log π(a|o) + value_cost · ½ (G − V)² − entropy_cost · H(π), mean over valid rows

    The sessions must come from the weights that it improves: use the Fresh sampler and `local`, or `max_lag` 0. Where
    players lag, use `VTrace`.

    Args:
        agent: the agent whose network learns.
        lambda_: λ of `returns.gae`; None: 0.95, unless `n_step` is given.
        n_step: n of `returns.n_step`, instead of `lambda_`.
        value_cost, entropy_cost: weights of the loss terms above.
        normalize_advantages: to mean 0 and standard deviation 1 over the batch.
        others: optimizer, learning_rate, max_grad_norm, total_updates, discount, reward_clip, return_scale of
            `TorchLearner`, which describes them.
    Raises:
        SettingsError: both `lambda_` and `n_step` are given, or `n_step` is below 1.
    """

    is_actor_critic = True

    def __init__(
        self,
        agent: TorchAgent,
        *,
        lambda_: float | None = None,
        n_step: int | None = None,
        learning_rate: float = 7e-4,
        value_cost: float = 0.5,
        entropy_cost: float = 0.01,
        normalize_advantages: bool = False,
        max_grad_norm: float | None = 0.5,
        optimizer: str = "rmsprop",
        **others: Any,
    ) -> None:
        if n_step is not None and (n_step < 1 or lambda_ is not None):
            raise SettingsError(
                f"A2C got n_step={n_step} and lambda_={lambda_}; give either n_step of 1 or more, or lambda_."
            )
        super().__init__(agent, optimizer, learning_rate=learning_rate, max_grad_norm=max_grad_norm, **others)
        self.lambda_, self.n_step = 0.95 if lambda_ is None else lambda_, n_step
        self.value_cost, self.entropy_cost = value_cost, entropy_cost
        self.normalize_advantages = normalize_advantages

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy, values = self.evaluate(batch)
        mask, entropies = batch.mask, policy.entropy()
        rows = self.rewards(batch), batch.discounts(self.discount), batch.continues, values
        n_step = self.n_step
        targets = returns.lambda_returns(*rows, self.lambda_) if n_step is None else returns.n_step(*rows, n_step)
        advantages = targets - values[:-1].detach()
        if self.normalize_advantages:
            advantages = losses.normalize(advantages, mask)

        weights, count = mask * batch.weights, losses.count(mask)
        policy_loss = losses.policy_gradient(policy.log_prob(batch.actions), advantages, weights) / count
        value_loss = losses.value(values[:-1], targets, weights) / count
        entropy_loss = losses.entropy(entropies, weights) / count
        loss = policy_loss + self.value_cost * value_loss + self.entropy_cost * entropy_loss
        return loss, {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": entropy_loss,
            "loss/total": loss,
            "policy/entropy": losses.masked_mean(entropies, mask),
            "value/explained_variance": losses.explained_variance(values[:-1], targets, mask),
        }
