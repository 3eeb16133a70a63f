"""DQN and R2D2: Q-learning from replay, the one with what was found to help since 2015, the other with a memory too."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinyverse.agents.q_agent import QAgent
from tinyverse.algorithms import losses, returns
from tinyverse.algorithms.learner import Metrics
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError


class DQN(TorchLearner):
    """Deep Q-learning (Mnih et al. 2015): double, n-step, dueling, prioritised, as in Ape-X (Horgan et al. 2018).

        loss = w · Huber(y_t − Q(o_t, a_t)), mean over rows; y_t as in `returns.double_q`

    Targets may reach n rows ahead, and the network sees all rows of a slice in one pass, so slices are whole sessions:
    give short ones, of 10 rows or so. Then no row needs a burn-in, for the memory before row 0 comes with the session
    (the earlier frames of a `Window(4)`). `length` cuts slices from longer sessions; those begin with empty memory, so
    that `Window(4)` wants `burn_in=3`, which spares 3 rows.

    Priorities go to the sampler `Prioritized`; of another the weights w are 1. Dueling is the agent's: see `QAgent`.

    Args:
        agent: its network learns.
        discount: γ per step.
        n: rewards in a target before the bootstrap.
        double: the online network chooses the action whose target value counts; False: the target network itself.
        target_every: updates between copies of the network into the target network.
        learning_rate, optimizer, max_grad_norm, total_updates: see `Optimizer`.
        reward_clip: rewards are clipped to ± this; None leaves them.
        squash: Q is of returns squashed by `returns.squashed` with this ε; None: of plain returns.
        eta: see `losses.sequence_priorities`.
        length, burn_in: see `Learner`.
    Raises:
        SettingsError: the agent is no `QAgent`.
    """

    agent: QAgent

    def __init__(
        self,
        agent: QAgent,
        *,
        discount: float = 0.99,
        n: int = 3,
        double: bool = True,
        target_every: int = 500,
        learning_rate: float = 1e-4,
        reward_clip: float | None = None,
        squash: float | None = None,
        eta: float = 0.9,
        length: int | None = None,
        burn_in: int = 0,
        max_grad_norm: float | None = 10.0,
        optimizer: str = "adam",
        total_updates: int | None = None,
    ) -> None:
        if not isinstance(agent, QAgent):
            raise SettingsError(
                f"{type(self).__name__} got a {type(agent).__name__}, wanted QAgent(network, action_space): "
                "it acts by the values that are learned."
            )
        super().__init__(
            agent, optimizer, learning_rate=learning_rate, max_grad_norm=max_grad_norm, total_updates=total_updates
        )
        self.target = copy.deepcopy(agent.network).requires_grad_(False)
        self.discount, self.n, self.double, self.target_every = discount, n, double, target_every
        self.reward_clip, self.squash, self.eta = reward_clip, squash, eta
        self.length, self.burn_in = length, burn_in

    def train_step(self, batch: Batch) -> Metrics:
        if self.optimizer.updates % self.target_every == 0:
            self.target.load_state_dict(self.agent.network.state_dict())
        loss, metrics = self.loss(batch)
        return {**metrics, "grad_norm": self.optimizer.step(loss)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend from, and metrics without gradient: 0-d, but for the `priorities` [B]."""
        online = self._q_of_rows(self.agent.network, batch)
        with torch.no_grad():
            target = self._q_of_rows(self.target, batch)
        rows = slice(batch.burn_in, None)
        rewards, discounts = self.rewards(batch)[rows], batch.discounts(self.discount)[rows]
        chooser = online if self.double else target
        targets = returns.double_q(rewards, discounts, batch.traces[rows], chooser, target, self.n, squash=self.squash)
        actions = batch.actions[rows].long() - self.agent.start
        chosen = online[:-1].gather(-1, actions[..., None])[..., 0]

        mask = batch.mask[rows]
        loss = losses.huber(chosen, targets, mask * batch.weights) / losses.count(mask)
        errors, chosen = (targets - chosen).detach(), chosen.detach()
        return loss, {
            "loss/total": loss.detach(),
            "value/error": losses.masked_mean(errors.abs(), mask),
            "value/mean": losses.masked_mean(chosen, mask),
            "value/explained_variance": losses.explained_variance(chosen, targets, mask),
            "priorities": losses.sequence_priorities(errors, mask, self.eta),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])

    def _q_of_rows(self, network: Any, batch: Batch) -> Tensor:
        """[T − burn_in + 1, B, A]; no gradient flows into the burn-in."""
        memory, first, start = batch.initial_memory, batch.first, batch.burn_in
        if start:
            with torch.no_grad():
                early = nest.map(lambda rows: rows[:start], batch.observations)
                _, memory = network(early, memory, first[:start])
        late = nest.map(lambda rows: rows[start:], batch.observations)
        return self.agent.q_values(network(late, memory, first[start:])[0])
