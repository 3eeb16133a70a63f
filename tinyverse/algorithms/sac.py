"""SAC: off-policy actor-critic for continuous actions, which maximises reward and entropy."""

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses
from tinyverse.algorithms.learner import Metrics
from tinyverse.algorithms.torch_learner import Optimizer, TorchLearner
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks.squashed import SquashedActor, SquashedGaussian


class Rows(NamedTuple):
    """The transitions of a batch. The reset row after an episode's end is among them, with share 0."""

    observations: nest.Tree  # [T, B, …] per leaf
    following: nest.Tree  # [T, B, …] per leaf, the next ones; the true last observation where an episode ended
    actions: Tensor  # [T, B, D] unit actions
    rewards: Tensor  # [T, B]
    discounts: Tensor  # [T, B] γ, and 0 where the episode terminated
    share: Tensor  # [T, B] weight of a row in the mean, with importance weights; 0 for reset rows
    mean: Tensor  # [T, B] the same without importance weights


class SAC(TorchLearner):
    """Soft actor-critic with twin critics and a learned temperature (Haarnoja et al. 2018b, algorithm 1).

        critics      ½ (Q_i(o, a) − y)²,    y = r + γ (min_i Q̄_i(o', x') − α log π(x'|o')),  x' ~ π(o')    (eq. 5, 6)
        actor        α log π(x|o) − min_i Q_i(o, x),  x ~ π(o) by reparameterisation                       (eq. 9)
        temperature  −α (log π(x|o) + target entropy)                                                      (eq. 18)
        targets      Q̄_i += polyak · (Q_i − Q̄_i)

    All are means over valid rows. Actions x and their densities are in units in which every bound is ± 1. A row is a
    transition to the next row. A time limit does not cut the bootstrap, since the next row is then the episode's true
    last observation. Use the Uniform sampler. `reuse = batch · unroll_length` makes one update per step played.

    Args:
        agent: an agent with a `SquashedActor`, from which the critics are made. Players get only the actor.
        length: rows of the slices that it learns from, at random places of sessions; None: whole sessions.
        discount: γ per step.
        learning_rate: of the actor, and of critics and temperature where theirs are None.
        polyak: share of the critics that goes into their targets at each update.
        target_entropy: in nats; None: −D, for actions of D numbers.
        temperature: α before the first update.
        learn_temperature: False keeps α constant.
        reward_scale: factor for rewards.
        max_grad_norm, total_updates: see `Optimizer`.
    Raises:
        SettingsError: the agent's network is no `SquashedActor`, or a number is out of its range.
    """

    def __init__(
        self,
        agent: TorchAgent,
        *,
        length: int | None = 1,
        discount: float = 0.99,
        learning_rate: float = 3e-4,
        critic_learning_rate: float | None = None,
        temperature_learning_rate: float | None = None,
        polyak: float = 0.005,
        target_entropy: float | None = None,
        temperature: float = 1.0,
        learn_temperature: bool = True,
        reward_scale: float = 1.0,
        max_grad_norm: float | None = None,
        total_updates: int | None = None,
    ) -> None:
        if not isinstance(agent.network, SquashedActor):
            raise SettingsError(
                f"SAC got an agent of {type(agent.network).__name__}, wanted TorchAgent(SquashedActor(…)): "
                "its actions lie within bounds, and it can make critics of itself."
            )
        if not (temperature > 0 and 0 < polyak <= 1):
            raise SettingsError(
                f"SAC got temperature={temperature} and polyak={polyak}; wanted > 0, and 0 < polyak ≤ 1."
            )
        limits: dict[str, Any] = {"max_grad_norm": max_grad_norm, "total_updates": total_updates}
        super().__init__(agent, learning_rate=learning_rate, discount=discount, **limits)
        self.length, self.reward_scale, self.polyak = length, reward_scale, polyak
        self.learn_temperature = learn_temperature
        self.critics = nn.ModuleList([agent.network.critic(), agent.network.critic()])
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature), device=agent.device))
        self.target_entropy = -float(agent.network.actions) if target_entropy is None else target_entropy
        self.optimizers = {"actor": self.optimizer}
        for name, parameters, rate in (
            ("critics", self.critics.parameters(), critic_learning_rate),
            ("temperature", [self.log_temperature], temperature_learning_rate),
        ):
            rate = learning_rate if rate is None else rate
            self.optimizers[name] = Optimizer(parameters, learning_rate=rate, **limits)

    @property
    def temperature(self) -> Tensor:
        """α, 0-d and without gradient."""
        return self.log_temperature.detach().exp()

    def train_step(self, batch: Batch) -> Metrics:
        rows = self.rows(batch)
        critic_loss, metrics = self.critic_loss(rows)
        metrics["grad_norm/critics"] = self.optimizers["critics"].step(critic_loss)
        self.critics.requires_grad_(False)  # the actor needs the gradient of Q in the action only
        actor_loss, entropy = self.actor_loss(rows)
        metrics["grad_norm/actor"] = self.optimizers["actor"].step(actor_loss)
        self.critics.requires_grad_(True)
        if self.learn_temperature:
            self.optimizers["temperature"].step(self.temperature_loss(entropy, rows))
        follow(self.targets, self.critics, self.polyak)
        return metrics | {
            "loss/actor": actor_loss.detach(),
            "policy/entropy": entropy,
            "policy/temperature": self.temperature,
        }

    def rows(self, batch: Batch) -> Rows:
        """Returns the transitions of a batch of sessions."""
        mean = batch.mask / losses.count(batch.mask)
        return Rows(
            observations=nest.map(lambda rows: rows[:-1], batch.observations),
            following=nest.map(lambda rows: rows[1:], batch.observations),
            actions=self.agent.network.unit(batch.actions),
            rewards=batch.rewards * self.reward_scale,
            discounts=batch.discounts(self.discount),
            share=mean * batch.weights,
            mean=mean,
        )

    def critic_loss(self, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of both critics' losses (eq. 5), a scalar, and metrics without gradient."""
        targets = self.soft_targets(rows)
        values = [critic(rows.observations, rows.actions) for critic in self.critics]
        loss = sum((losses.value(q, targets, rows.share) for q in values), start=torch.zeros_like(rows.share[0, 0]))
        metrics = {"loss/critics": loss, "value/mean": losses.masked_sum(values[0], rows.share)}
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    @torch.no_grad()
    def soft_targets(self, rows: Rows) -> Tensor:
        """Returns y [T, B] (eq. 6), from the target critics and the current policy."""
        actions, log_probs = self._policy(rows.following).rsample()
        values = torch.minimum(*(target(rows.following, actions) for target in self.targets))
        return rows.rewards + rows.discounts * (values - self.temperature * log_probs)

    def actor_loss(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Returns the actor's loss (eq. 9), a scalar, and the entropy as the samples estimate it, without gradient."""
        actions, log_probs = self._policy(rows.observations).rsample()
        values = torch.minimum(*(critic(rows.observations, actions) for critic in self.critics))
        loss = losses.masked_sum(self.temperature * log_probs - values, rows.share)
        return loss, -losses.masked_sum(log_probs.detach(), rows.mean)

    def temperature_loss(self, entropy: Tensor, rows: Rows) -> Tensor:
        """Returns α (H − target), 0-d (eq. 18): α falls while the entropy H is above its target. 0 of a batch without rows."""
        return self.log_temperature.exp() * (entropy - self.target_entropy * rows.mean.sum())

    def _policy(self, observations: nest.Tree) -> SquashedGaussian:
        is_first = torch.zeros(nest.leaves(observations)[0].shape[:2], dtype=torch.bool, device=self.device)
        network = self.agent.network
        return network.distribution(network(observations, (), is_first)[0].policy)

    def state_dict(self) -> dict[str, Any]:
        return {
            "actor": self.agent.network.state_dict(),
            "critics": self.critics.state_dict(),
            "targets": self.targets.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.network.load_state_dict(state["actor"])
        self.critics.load_state_dict(state["critics"])
        self.targets.load_state_dict(state["targets"])
        self.log_temperature.data.copy_(state["log_temperature"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Moves the target's parameters by `rate` of the way to the source's (Polyak averaging), and copies buffers."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)
    for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)
