"""Learner: what a trainer needs of an algorithm.

learner = VTrace(agent)
loop:
    metrics = learner.train_step(batch)
    now and then: publish learner.get_weights(), save learner.state_dict()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinyverse.core.batch import Batch
from tinyverse.core.weights import Weights

Metrics = Mapping[str, float | Tensor]


class Learner:
    """Makes an agent better, batch by batch. Synonyms: algorithm, update rule.

    Attributes:
        length: rows of the slices it wants to learn from, at random places of sessions; None: whole sessions.
        burn_in: rows before those, which only warm up memory. With `length=None` they begin the session.
        distributed: whether `train_step` makes the same of its rank's share on every rank, as all do whose gradients pass an
            `Optimizer`; only then may there be several ranks.
    """

    length: int | None = None
    burn_in: int = 0
    distributed: bool = False

    @property
    def device(self) -> torch.device:
        """Where batches should lie."""
        return torch.device("cpu")

    def train_step(self, batch: Batch) -> Metrics:
        """One update.

        Returns:
            Metrics by name ("loss/policy"): floats or 0-d tensors, which the trainer reads now and then only, since
            reading waits for the device. With `"priorities"`: [B] new ones for a prioritised sampler.
        """
        raise NotImplementedError(f"{type(self).__name__} must define train_step()")

    def get_weights(self) -> Weights:
        """What players need, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define get_weights()")

    def state_dict(self) -> dict[str, Any]:
        """All that learning needs to go on in another process; tensors, numbers and strings in dicts and lists."""
        raise NotImplementedError(f"{type(self).__name__} must define state_dict()")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        raise NotImplementedError(f"{type(self).__name__} must define load_state_dict()")
