"""Behaviour cloning: supervised learning of the actions in sessions. It ignores rewards."""

from torch import Tensor

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import losses
from tinyverse.algorithms.torch_learner import TorchLearner
from tinyverse.core import distributed
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks.heads import UNAVAILABLE

PATIENCE = 20  # batches


class BehaviourCloning(TorchLearner):
    """Makes the actions of the sessions likelier (Pomerleau 1989, ALVINN).

        loss = −log π(a|o) − entropy_cost · H(π), mean over valid rows to imitate

    It is for sessions of people (`play --human`) or imported sessions. Use `sampler="uniform"`, so that the trainer
    need not wait for players. Players may run beside it to show how well the agent plays.

    Args:
        agent: the agent whose network learns. Only the policy learns, the value head stays as it is.
        whom: "human": imitate only sessions of people; "all": every session.
        learning_rate, optimizer, max_grad_norm, total_updates: see `Optimizer`.
        entropy_cost: above 0 it keeps the policy from becoming certain after few sessions.
    Raises:
        SettingsError: `whom` is neither "human" nor "all".
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
        self._in_vain = 0  # updates in a row without anything to imitate

    def _check_rows(self, mask: Tensor) -> None:
        self._in_vain = 0 if distributed.total(mask.sum()) > 0 else self._in_vain + 1  # ranks end together
        if self._in_vain >= PATIENCE:
            raise SettingsError(
                f"{PATIENCE} batches in a row held nothing that BehaviourCloning(whom={self.whom!r}) imitates. Sessions of "
                "people come from play --human; whom='all' imitates all sessions, imported ones too."
            )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        policy, _ = self.evaluate(batch)
        mask, entropies = batch.mask, policy.entropy()
        if self.whom == "human":
            mask = mask * (0 if batch.human is None else batch.human)
        log_probs = policy.log_prob(batch.actions)
        mask = mask * (log_probs > UNAVAILABLE / 2)  # nobody can learn an action that the policy's mask forbids
        self._check_rows(mask)
        weights, rows = mask * batch.weights, losses.count(mask)
        imitation = -losses.masked_sum(log_probs.clamp(min=UNAVAILABLE / 2), weights) / rows
        loss = imitation + self.entropy_cost * losses.entropy(entropies, weights) / rows
        return loss, {
            "loss/imitation": imitation,
            "loss/total": loss,
            "policy/entropy": losses.masked_mean(entropies, mask),
            "imitation/rows": mask.mean(),
        }
