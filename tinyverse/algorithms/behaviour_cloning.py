"""Behaviour cloning: learns to do what was done in the sessions, as if it were right; no rewards are looked at."""

from __future__ import annotations

from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses
from tinyverse.algorithms.learner import Metrics
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError


class BehaviourCloning(TorchLearner):
    """Makes the actions of the sessions likelier (Pomerleau 1989, ALVINN).

        loss = −log π(a|o) − entropy_cost · H(π), mean over rows that happened and are to be imitated

    For sessions of people (`play --human`) or imported ones. It goes with `sampler="uniform"`, so that players need
    not keep up; they may play along, to see how well it does.

    Args:
        agent: its network learns; only the policy, the value head stays as it is.
        whom: "human": what people played, and nothing of players; "all": every session in memory.
        learning_rate, optimizer, max_grad_norm, total_updates: see `Optimizer`.
        entropy_cost: above 0 keeps the policy from certainty that a few sessions do not warrant.
    Raises:
        SettingsError: `whom` is something else.
    """

    def __init__(
        self,
        agent: TorchAgent,
        *,
        whom: str = "human",
        learning_rate: float = 1e-3,
        entropy_cost: float = 0.0,
        max_grad_norm: float | None = 1.0,
        optimizer: str = "adam",
        total_updates: int | None = None,
    ) -> None:
        if whom not in ("human", "all"):
            raise SettingsError(f"BehaviourCloning(whom={whom!r}) imitates nobody; there are 'human' and 'all'.")
        super().__init__(
            agent, optimizer, learning_rate=learning_rate, max_grad_norm=max_grad_norm, total_updates=total_updates
        )
        self.whom, self.entropy_cost = whom, entropy_cost

    def train_step(self, batch: Batch) -> Metrics:
        loss, metrics = self.loss(batch)
        return {**metrics, "grad_norm": self.optimizer.step(loss)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend from, and metrics as 0-d tensors without gradient."""
        network, mask = self.agent.network, self.mask(batch)
        outputs, _ = network(batch.observations, batch.initial_memory, batch.first)
        policy = network.distribution(nest.map(lambda rows: rows[:-1], outputs.policy))
        weights, rows, entropies = mask * batch.weights, losses.count(mask), policy.entropy()
        imitation = -losses.masked_sum(policy.log_prob(batch.actions), weights) / rows
        loss = imitation + self.entropy_cost * losses.entropy(entropies, weights) / rows
        metrics = {
            "loss/imitation": imitation,
            "loss/total": loss,
            "policy/entropy": losses.masked_mean(entropies, mask),
            "imitation/rows": mask.mean(),
        }
        return loss, {name: metric.detach() for name, metric in metrics.items()}

    def mask(self, batch: Batch) -> Tensor:
        """[T, B] 1 where a row happened and is to be imitated."""
        if self.whom == "all":
            return batch.mask
        return batch.mask * 0 if batch.human is None else batch.mask * batch.human
