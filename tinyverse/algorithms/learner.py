"""Learner: the interface of an algorithm for trainers; `FunctionLearner`: a plain function as one, for any framework.

learner = VTrace(agent)
loop:
    metrics = learner.train_step(batch)
    now and then: publish learner.get_weights(), save learner.state_dict()
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinyverse.core.batch import Batch
from tinyverse.core.weights import Weights

Metrics = Mapping[str, float | Tensor]


class Learner:
    """Improves an agent, one batch at a time. Synonyms: algorithm, update rule.

    Attributes:
        length: rows of the slices that it learns from, taken at random places of sessions; None: whole sessions.
        burn_in: rows before each slice that only update the recurrent state. With `length=None` they are a session's
            first.
        distributed: whether several ranks may train together. True if `train_step` runs the same code on every rank's share
            of the batch and every gradient passes an `Optimizer`, which averages it.
    """

    length: int | None = None
    burn_in: int = 0
    distributed: bool = False
    current_learning_rate: float | None = None  # of the next update; None: there is none

    @property
    def device(self) -> torch.device:
        """The device on which `train_step` wants its batches."""
        return torch.device("cpu")

    def train_step(self, batch: Batch) -> Metrics:
        """Makes one update.

        Returns:
            Metrics by name ("loss/policy"): floats or 0-d tensors. The trainer reads them only now and then, because
            reading waits for the device. The name "priorities" may hold new priorities [B] for a prioritised sampler.
        """
        raise NotImplementedError(f"{type(self).__name__} must define train_step()")

    def get_weights(self) -> Weights:
        """Returns the weights that players need, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define get_weights()")

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that learning needs to continue in another process, as nested dicts and lists of tensors,
        numbers and strings.
        """
        raise NotImplementedError(f"{type(self).__name__} must define state_dict()")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        raise NotImplementedError(f"{type(self).__name__} must define load_state_dict()")
