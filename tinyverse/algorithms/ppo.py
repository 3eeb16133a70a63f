"""PPO: several small steps over new sessions, each kept near the policy that played them."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
from tinyverse.networks.normalization import statistics_afterwards


class Estimates(NamedTuple):
    """A batch with the values, value targets and advantages of its rows, all [T, B]."""

    batch: Batch
    values: Tensor
    targets: Tensor
    advantages: Tensor

    def columns(self, which: Tensor) -> "Estimates":
        """The sessions at these places."""
        return Estimates(self.batch.columns(which), *(rows[:, which] for rows in self[1:]))


class PPO(TorchLearner):
    """Proximal policy optimisation (Schulman et al. 2017, eq. 7 and 9) with generalised advantages.

        loss = −min(ρ A, clip(ρ, 1 ± ε) A) + value_cost · ½ (G − V)² − entropy_cost · H(π), mean over valid rows

    One `train_step` uses a whole batch. It computes advantages and targets once, from the values before the update.
    Each of `epochs` passes then goes over all sessions in a new order, in `minibatches` parts. A part consists of whole
    sessions, so recurrent networks work. With the Fresh sampler and `local` this is the paper's algorithm. Where
    players lag, use `VTrace(surrogate_clip=…)`.

    Args:
        agent: the agent whose network learns; its sessions must carry `behaviour_log_prob`.
        lambda_: λ of `returns.gae`.
        epochs: passes over each batch.
        minibatches: parts of a pass, each with one optimizer step.
        total_updates: train steps over which the learning rate and the clip fall linearly to 0; None: constant.
        clip: ε.
        value_clip: how far V may move from its old value, as in OpenAI's implementation; None: no limit.
        value_cost, entropy_cost: weights of the loss terms above.
        normalize_advantages: to mean 0 and standard deviation 1 over the batch.
        others: optimizer, learning_rate, max_grad_norm, discount, reward_clip, return_scale of `TorchLearner`,
            which describes them.
    Raises:
        SettingsError: `epochs` or `minibatches` is below 1; at a train step, a batch has fewer sessions than
            minibatches.
    """

    is_actor_critic = True

    def __init__(
        self,
        agent: TorchAgent,
        *,
        lambda_: float = 0.95,
        learning_rate: float = 2.5e-4,
        epochs: int = 4,
        minibatches: int = 4,
        clip: float = 0.2,
        value_clip: float | None = None,
        value_cost: float = 0.5,
        entropy_cost: float = 0.01,
        normalize_advantages: bool = True,
        max_grad_norm: float | None = 0.5,
        total_updates: int | None = None,
        **others: Any,
    ) -> None:
        for name, count in (("epochs", epochs), ("minibatches", minibatches)):
            if count < 1:
                raise SettingsError(f"PPO({name}={count}) learns nothing; give 1 or more.")
        steps = None if total_updates is None else total_updates * epochs * minibatches
        others |= {"max_grad_norm": max_grad_norm, "total_updates": steps}
        super().__init__(agent, learning_rate=learning_rate, **others)
        self.lambda_, self.epochs, self.minibatches = lambda_, epochs, minibatches
        self.clip, self.value_clip = clip, value_clip
        self.value_cost, self.entropy_cost = value_cost, entropy_cost
        self.normalize_advantages = normalize_advantages

    def train_step(self, batch: Batch) -> Metrics:
        sessions = batch.rewards.shape[1]
        if self.minibatches > sessions:
            raise SettingsError(
                f"PPO cannot cut {counted(sessions, 'session')} into {self.minibatches} minibatches. Raise -b."
            )
        whole = self.estimates(batch)
        with statistics_afterwards(self.agent.network, self.minibatches):
            for _ in range(self.epochs):
                for part in torch.randperm(sessions, device=self.device).tensor_split(self.minibatches):
                    loss, metrics = self.minibatch_loss(whole if self.minibatches == 1 else whole.columns(part))
                    norm = self.optimizer.step(loss)
        explained = losses.explained_variance(whole.values, whole.targets, batch.mask)
        return {**metrics(), "grad_norm": norm, "value/explained_variance": explained, **self.scale()}

    @torch.no_grad()
    def estimates(self, batch: Batch) -> Estimates:
        """Computes advantages and targets once per batch, from the values before the first epoch."""
        outputs, _ = self.agent.network(batch.observations, batch.initial_state, batch.is_first)
        rewards, values = self.rewards(batch), outputs.values.float()
        advantages = returns.gae(rewards, batch.discounts(self.discount), batch.continues, values, self.lambda_)
        targets = values[:-1] + advantages
        if self.normalize_advantages:
            advantages = losses.normalize(advantages, batch.mask)
        return Estimates(batch, values[:-1], targets, advantages)

    def minibatch_loss(self, part: Estimates) -> tuple[Tensor, Callable[[], dict[str, Tensor]]]:
        """Returns the loss of one minibatch, and a function that computes its metrics (0-d, no gradient).

        Only the last minibatch's metrics are computed.
        """
        batch, old_values, targets, advantages = part
        network, mask = self.agent.network, batch.mask
        observations = nest.map(lambda rows: rows[:-1], batch.observations)
        outputs, _ = network(observations, batch.initial_state, batch.is_first[:-1])
        policy, values = network.distribution(outputs.policy), outputs.values.float()
        log_rhos = losses.bounded(policy.log_prob(batch.actions) - self.behaviour_log_probs(batch))
        clip = self.clip * self.optimizer.remaining

        share = mask / losses.count(mask)  # [T, B] weight of a row in the mean
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
