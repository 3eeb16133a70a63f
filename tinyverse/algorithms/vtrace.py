"""V-trace actor-critic (IMPALA): learns from sessions of slightly older weights."""

from typing import Any

from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses, returns
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core.batch import Batch


class VTrace(TorchLearner):
    """Advantage actor-critic with clipped importance weights that correct for lag (Espeholt et al. 2018, IMPALA).

        loss = policy gradient + value_cost · ½ (v_s − V)² − entropy_cost · H(π), mean over valid rows

    The paper sums over the T · B rows. Here the sum is divided by the number of valid rows, so a learning rate means
    the same for every batch size.

    With replayed sessions (the `Mixed` sampler) it resembles ACER (Wang et al. 2017): an actor-critic with clipped
    weights on old sessions, but without ACER's Q-values and trust region.

    Args:
        agent: the agent whose network learns; its sessions must carry `behaviour_log_prob`.
        value_cost, entropy_cost: weights of the loss terms above.
        clip_rho, clip_pg_rho, lambda_: see `returns.vtrace`.
        surrogate_clip: ε of PPO's clipped surrogate (Schulman et al. 2017, eq. 7) on the V-trace advantages, instead of
            the plain policy gradient. Steps stay small, so the trainer can use each session several times.
        normalize_advantages: to mean 0 and standard deviation 1 over the batch.
        others: optimizer, learning_rate, max_grad_norm, total_updates, discount, reward_clip, return_scale of
            `TorchLearner`, which describes them.
    """

    is_actor_critic = True

    def __init__(
        self,
        agent: TorchAgent,
        *,
        learning_rate: float = 6e-4,
        value_cost: float = 0.5,
        entropy_cost: float = 0.01,
        clip_rho: float = 1.0,
        clip_pg_rho: float = 1.0,
        lambda_: float = 1.0,
        surrogate_clip: float | None = None,
        reward_clip: float | None = 1.0,
        normalize_advantages: bool = False,
        max_grad_norm: float | None = 40.0,
        optimizer: str = "rmsprop",
        **others: Any,
    ) -> None:
        others |= {"reward_clip": reward_clip, "max_grad_norm": max_grad_norm}
        super().__init__(agent, optimizer, learning_rate=learning_rate, **others)
        self.value_cost, self.entropy_cost = value_cost, entropy_cost
        self.clips = {"clip_rho": clip_rho, "clip_pg_rho": clip_pg_rho, "lambda_": lambda_}
        self.normalize_advantages, self.surrogate_clip = normalize_advantages, surrogate_clip

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy, values = self.evaluate(batch)
        mask, log_probs, entropies = batch.mask, policy.log_prob(batch.actions), policy.entropy()
        log_rhos = log_probs - self.behaviour_log_probs(batch)

        targets, advantages, unweighted = returns.vtrace(
            log_rhos, self.rewards(batch), batch.discounts(self.discount), batch.continues, values, **self.clips
        )
        if self.surrogate_clip is not None:
            advantages = unweighted  # the surrogate multiplies by the ratio itself
        if self.normalize_advantages:
            advantages = losses.normalize(advantages, mask)

        weights, rows = mask * batch.weights, losses.count(mask)
        if self.surrogate_clip is None:
            policy_loss = losses.policy_gradient(log_probs, advantages, weights) / rows
        else:
            policy_loss = losses.clipped_policy_gradient(log_rhos, advantages, weights, self.surrogate_clip) / rows
        value_loss = losses.value(values[:-1], targets, weights) / rows
        entropy_loss = losses.entropy(entropies, weights) / rows
        loss = policy_loss + self.value_cost * value_loss + self.entropy_cost * entropy_loss
        return loss, {
            "loss/policy": policy_loss,
            "loss/value": value_loss,
            "loss/entropy": entropy_loss,
            "loss/total": loss,
            "policy/entropy": losses.masked_mean(entropies, mask),
            "vtrace/mean_rho": losses.masked_mean(log_rhos.exp().clamp(max=self.clips["clip_rho"]), mask),
            "value/explained_variance": losses.explained_variance(values[:-1], targets, mask),
        }
