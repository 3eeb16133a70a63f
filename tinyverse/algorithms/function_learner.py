"""FunctionLearner: a learner around a plain function `train_step(agent, batch)`, for any framework."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tinyverse.agents.agent import Agent
from tinyverse.algorithms.learner import Learner, Metrics
from tinyverse.core.batch import Batch
from tinyverse.core.weights import Weights


class FunctionLearner(Learner):
    """Calls a function that updates the agent in place. Checkpoints hold the agent's weights and nothing else.

    An optimizer that lives inside the function therefore starts from zero after a resume.

    Args:
        train_step: `train_step(agent, batch)`; it returns metrics by name, or None.
        agent: the function's first argument.
    """

    def __init__(self, train_step: Callable[[Any, Batch], Metrics | None], agent: Agent) -> None:
        self.function, self.agent = train_step, agent

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.agent, "device", "cpu"))

    def train_step(self, batch: Batch) -> Metrics:
        return self.function(self.agent, batch) or {}

    def get_weights(self) -> Weights:
        return self.agent.get_weights()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": {name: torch.tensor(array) for name, array in self.agent.get_weights().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.set_weights({name: tensor.cpu().numpy() for name, tensor in state["weights"].items()})
