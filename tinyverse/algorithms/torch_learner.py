"""TorchLearner: what learners of PyTorch networks share, and their `Optimizer`."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.learner import Learner, Metrics
from tinyverse.core import distributed, nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.core.text import article
from tinyverse.core.weights import Weights
from tinyverse.networks import Distribution
from tinyverse.networks.normalization import RewardNormalizer
from tinyverse.networks.squashed import SquashedActor


class Optimizer:
    """Makes one step of gradient descent: gradient, average over ranks, clipping, learning rate, step.

    Args:
        parameters: the parameters to optimise.
        name: "adam" or "rmsprop", see `TorchLearner`, as for the other options.
    Attributes:
        reduce: is called with the parameters between gradient and clipping; `distributed.average_gradients`.
    Raises:
        SettingsError: there is no such optimizer.
    """

    reduce: Callable[[list[nn.Parameter]], None] = staticmethod(distributed.average_gradients)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        name: str = "adam",
        *,
        learning_rate: float,
        max_grad_norm: float | None = None,
        total_updates: int | None = None,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate, self.max_grad_norm, self.total_updates = learning_rate, max_grad_norm, total_updates
        self.updates = 0
        if name == "adam":
            self.torch: Any = torch.optim.Adam(self.parameters, learning_rate, eps=1e-5, fused=True)
        elif name == "rmsprop":
            self.torch = torch.optim.RMSprop(self.parameters, learning_rate, alpha=0.99, eps=0.01)
        else:
            raise SettingsError(f"optimizer={name!r} is unknown. Use 'adam' or 'rmsprop'.")

    def step(self, loss: Tensor) -> Tensor:
        """Descends from `loss`, a scalar, and returns the norm of the gradient before clipping, 0-d."""
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self.reduce(self.parameters)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if self.max_grad_norm is not None:
            torch._foreach_mul_(gradients, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self.torch.param_groups:
            group["lr"] = self.current_learning_rate
        self.torch.step()
        self.updates += 1
        return norm

    @property
    def current_learning_rate(self) -> float:
        """The learning rate of the next update."""
        return self.learning_rate * self.remaining

    @property
    def remaining(self) -> float:
        """The remaining share of `total_updates`, from 1 down to 0; always 1 without `total_updates`."""
        return 1.0 if self.total_updates is None else max(0.0, 1 - self.updates / self.total_updates)

    def state_dict(self) -> dict[str, Any]:
        return {"torch": self.torch.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.torch.load_state_dict(state["torch"])
        self.updates = state["updates"]


class TorchLearner(Learner):
    """A learner with one agent and one optimizer of its network. A subclass defines `loss`, or else `train_step`.

    Args:
        agent: the agent whose network learns.
        optimizer: "adam" (Kingma & Ba 2015; ε 1e-5) or "rmsprop" (as in IMPALA: decay 0.99, ε 0.01).
        learning_rate: of the first update.
        max_grad_norm: scales the gradient down to this L2 norm; None: never.
        total_updates: the learning rate falls linearly to 0 over this many updates; None: it is constant.
        discount: γ per step.
        reward_clip: clip rewards to ± this before they are normalised; None: do not.
        return_scale: divide rewards by the running standard deviation of returns, see `RewardNormalizer`.
    Raises:
        SettingsError: there is no such optimizer, or no such option.
    """

    distributed = True
    is_actor_critic = False  # whether it learns the network's policy and value heads

    def __init__(
        self,
        agent: TorchAgent,
        optimizer: str = "adam",
        *,
        learning_rate: float,
        max_grad_norm: float | None = None,
        total_updates: int | None = None,
        discount: float = 0.99,
        reward_clip: float | None = None,
        return_scale: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise SettingsError(
                f"{type(self).__name__} has no option {next(iter(unknown))!r}; there are {', '.join(_options(type(self)))}."
            )
        if not isinstance(agent, TorchAgent):
            raise SettingsError(f"{type(self).__name__} learns the network of a TorchAgent, got {article(agent)}.")
        if self.is_actor_critic and (isinstance(agent, QAgent) or isinstance(agent.network, SquashedActor)):
            raise SettingsError(
                f"{type(self).__name__} learns a policy and a value, got {article(agent)} of a {type(agent.network).__name__}. "
                "Give TorchAgent(ModularNetwork(…)), or take DQN for a QAgent, SAC for a SquashedActor."
            )
        self.agent, self.discount, self.reward_clip = agent, discount, reward_clip
        limits: dict[str, Any] = {"max_grad_norm": max_grad_norm, "total_updates": total_updates}
        self.optimizer = Optimizer(agent.network.parameters(), optimizer, learning_rate=learning_rate, **limits)
        self.return_scale = RewardNormalizer(discount).to(agent.device) if return_scale else None

    @property
    def device(self) -> torch.device:
        return self.agent.device

    @property
    def current_learning_rate(self) -> float | None:  # type: ignore[override]  # of a field, by what is only read
        return self.optimizer.current_learning_rate

    def train_step(self, batch: Batch) -> Metrics:
        loss, metrics = self.loss(batch)
        metrics = {name: metric.detach() if torch.is_tensor(metric) else metric for name, metric in metrics.items()}
        return {**metrics, "grad_norm": self.optimizer.step(loss), **self.scale()}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, a scalar, and metrics: 0-d, except "priorities" [B]. No gradient flows into them."""
        raise NotImplementedError(f"{type(self).__name__} must define loss() or train_step()")

    def evaluate(self, batch: Batch) -> tuple[Distribution, Tensor]:
        """Returns the policy of the rows [T, B], and the values [T+1, B] float32."""
        network = self.agent.network
        outputs, _ = network(batch.observations, batch.initial_state, batch.is_first)
        return network.distribution(nest.map(lambda rows: rows[:-1], outputs.policy)), outputs.values.float()

    def rewards(self, batch: Batch) -> Tensor:
        """Returns the rewards [T, B] for learning: clipped, then normalised by statistics that each call updates."""
        clip = float("inf") if self.reward_clip is None else self.reward_clip
        rewards = batch.rewards.clamp(-clip, clip)
        return rewards if self.return_scale is None else self.return_scale(rewards, batch.continues, batch.mask)

    def scale(self) -> dict[str, Tensor]:
        """Returns the metric of `return_scale`, if there is one."""
        return {} if self.return_scale is None else {"value/return_scale": self.return_scale.moments.deviation}

    def behaviour_log_probs(self, batch: Batch) -> Tensor:
        """Returns log μ(a|o) [T, B] of the actions under the weights that played them.

        Raises:
            SettingsError: the agent's extras lack `behaviour_log_prob`.
        """
        if "behaviour_log_prob" not in batch.extras:
            raise SettingsError(
                f"{type(self).__name__} weighs actions by how likely they were, which {type(self.agent).__name__} does "
                "not tell: its act() gives no extra 'behaviour_log_prob'. Take a TorchAgent, or DQN for a QAgent."
            )
        return batch.extras["behaviour_log_prob"]

    def get_weights(self) -> Weights:
        return self.agent.get_weights()

    def state_dict(self) -> dict[str, Any]:
        scale = {} if self.return_scale is None else {"return_scale": self.return_scale.state_dict()}
        return {"network": self.agent.network.state_dict(), "optimizer": self.optimizer.state_dict()} | scale

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.return_scale is not None and "return_scale" in state:
            self.return_scale.load_state_dict(state["return_scale"])


def _options(learner: type[TorchLearner]) -> list[str]:
    """Returns the names of the options of a class and of those from which it inherits."""
    kinds = [kind for kind in learner.__mro__ if issubclass(kind, TorchLearner)]
    parameters = [each for kind in kinds for each in inspect.signature(kind).parameters.values()]
    named = {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}
    return sorted(named - {"agent"})
