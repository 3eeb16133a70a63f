"""DQN: Q-learning from replay, with double Q, n-step targets, dueling heads and priorities."""

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
    """Deep Q-learning (Mnih et al. 2015), with the additions of Ape-X (Horgan et al. 2018).

        loss = w · Huber(y_t − Q(o_t, a_t)), mean over valid rows; y_t as in `returns.double_q`

    Targets reach n rows ahead, and the network sees all rows of a slice in one pass. By default a slice is a whole
    session, so make sessions short, about 10 rows. A whole session needs no burn-in, because it carries the recurrent
    state before row 0 (the earlier frames of a `Window(4)`). With `length`, slices are cut from longer sessions and
    begin with an empty state, so `Window(4)` needs `burn_in=3`.

    The `Prioritized` sampler takes priorities and gives weights w; with other samplers w is 1. Dueling is set in
    `QAgent`.

    Args:
        agent: the agent whose network learns.
        n: rewards in a target before the bootstrap.
        double: the online network chooses the bootstrap action and the target network values it; False: the target
            network does both.
        target_every: updates between copies of the network to the target network.
        squash: ε of `returns.squashed`, if Q is to be of squashed returns; None: of plain returns.
        eta: η of `losses.sequence_priorities`.
        length, burn_in: see `Learner`.
        others: optimizer, learning_rate, max_grad_norm, total_updates, discount, reward_clip, return_scale of
            `TorchLearner`, which describes them.
    Raises:
        SettingsError: the agent is no `QAgent`.
    """

    agent: QAgent

    def __init__(
        self,
        agent: QAgent,
        *,
        n: int = 3,
        double: bool = True,
        target_every: int = 500,
        learning_rate: float = 1e-4,
        squash: float | None = None,
        eta: float = 0.9,
        length: int | None = None,
        burn_in: int = 0,
        max_grad_norm: float | None = 10.0,
        **others: Any,
    ) -> None:
        if not isinstance(agent, QAgent):
            raise SettingsError(
                f"{type(self).__name__} got a {type(agent).__name__}, wanted QAgent(network, action_space): "
                "it acts by the values that are learned."
            )
        super().__init__(agent, learning_rate=learning_rate, max_grad_norm=max_grad_norm, **others)
        self.target = copy.deepcopy(agent.network).requires_grad_(False)
        self.n, self.double, self.target_every = n, double, target_every
        self.squash, self.eta, self.length, self.burn_in = squash, eta, length, burn_in

    def train_step(self, batch: Batch) -> Metrics:
        if self.optimizer.updates % self.target_every == 0:
            self.target.load_state_dict(self.agent.network.state_dict())
        return super().train_step(batch)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        online = self._q_of_rows(self.agent.network, batch)
        with torch.no_grad():
            target = self._q_of_rows(self.target, batch)
        rows = slice(batch.burn_in, None)
        rewards, discounts = self.rewards(batch)[rows], batch.discounts(self.discount)[rows]
        chooser = online if self.double else target
        targets = returns.double_q(
            rewards, discounts, batch.continues[rows], chooser, target, self.n, squash=self.squash
        )
        actions = batch.actions[rows].long() - self.agent.start
        chosen = online[:-1].gather(-1, actions[..., None])[..., 0]

        mask = batch.mask[rows]
        loss = losses.huber(chosen, targets, mask * batch.weights) / losses.count(mask)
        errors, chosen = (targets - chosen).detach(), chosen.detach()
        return loss, {
            "loss/total": loss,
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
        """Returns Q [T − burn_in + 1, B, A] of the rows after the burn-in, into which no gradient flows."""
        state, is_first, start = batch.initial_state, batch.is_first, batch.burn_in
        if start:
            with torch.no_grad():
                early = nest.map(lambda rows: rows[:start], batch.observations)
                _, state = network(early, state, is_first[:start])
        late = nest.map(lambda rows: rows[start:], batch.observations)
        return self.agent.q_values(network(late, state, is_first[start:])[0])
