"""Heads: from features to a distribution over actions, and to a value.

A head returns *parameters* (a tensor) and makes a distribution of them, which has `log_prob(actions)`, `entropy()`,
`sample(generator)` and `mode()`. Everything after the features is float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tinyverse.core import nest
from tinyverse.core.bounds import Bounds
from tinyverse.core.errors import SettingsError
from tinyverse.networks.trunks import orthogonal

UNAVAILABLE = -1e9  # logit; e^−1e9 is 0 in every float type, and sums of a few such logits stay finite


class Distribution(Protocol):
    """A distribution over actions for every row of a batch `[…]`, such as [T, B] or [n]."""

    def log_prob(self, actions: nest.Tree) -> Tensor:
        """Returns the log-probability or log-density […] of actions as the environment takes them."""

    def entropy(self) -> Tensor:
        """Returns the entropy […] in nats."""

    def sample(self, generator: torch.Generator | None = None) -> nest.Tree:
        """Returns random actions […, *shape] per leaf of the action space."""

    def mode(self) -> nest.Tree:
        """Returns the most likely actions […, *shape] per leaf."""


class Categorical:
    """A choice of one of A actions, `start` … `start + A − 1`; `logits` […, A] are normalised log-probabilities."""

    def __init__(self, logits: Tensor, start: int = 0) -> None:
        self.logits, self.start = logits.log_softmax(-1), start

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.logits.gather(-1, (actions.long() - self.start)[..., None])[..., 0]

    def entropy(self) -> Tensor:
        probabilities = self.logits.exp()
        return -(probabilities * self.logits.masked_fill(probabilities == 0, 0.0)).sum(-1)  # 0 log 0 = 0

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        waits = torch.empty_like(self.logits).exponential_(generator=generator).clamp_(min=1e-38)  # avoids log 0
        # argmax of log p − log E with E ~ Exp(1) samples p (Gumbel-max)
        return (self.logits - waits.log_()).argmax(-1) + self.start

    def mode(self) -> Tensor:
        return self.logits.argmax(-1) + self.start


class DiagonalGaussian:
    """Independent normal numbers without bounds; the pool clips actions to theirs, and learning uses the raw samples.

    `mean` and `log_std` are […, D]; actions are […, *shape] with D entries.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, shape: tuple[int, ...]) -> None:
        self.mean, self.log_std, self.shape = mean, log_std, shape

    def log_prob(self, actions: Tensor) -> Tensor:
        return self._log_densities(actions.float().reshape(self.mean.shape)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._shaped(self._raw_sample(generator))

    def mode(self) -> Tensor:
        return self._shaped(self.mean)

    def _raw_sample(self, generator: torch.Generator | None) -> Tensor:
        return self.mean + self.log_std.exp() * torch.empty_like(self.mean).normal_(generator=generator)

    def _log_densities(self, raw: Tensor) -> Tensor:
        """[…, D] of each number."""
        z = (raw - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2 * math.pi))

    def _shaped(self, actions: Tensor) -> Tensor:
        return actions.reshape(*actions.shape[:-1], *self.shape)


class Independent:
    """Parts that are chosen independently, so log-probabilities add up.

    `split` makes a list of the parts' actions from actions, `join` does the reverse.
    """

    def __init__(
        self,
        parts: Sequence[Distribution],
        split: Callable[[Any], Sequence[Any]],
        join: Callable[[list[Any]], nest.Tree],
    ) -> None:
        self.parts, self._split, self._join = parts, split, join

    def log_prob(self, actions: nest.Tree) -> Tensor:
        pairs = zip(self.parts, self._split(actions), strict=True)
        return torch.stack([part.log_prob(leaf) for part, leaf in pairs]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def sample(self, generator: torch.Generator | None = None) -> nest.Tree:
        return self._join([part.sample(generator) for part in self.parts])

    def mode(self) -> nest.Tree:
        return self._join([part.mode() for part in self.parts])


class Joint(Independent):
    """A tree of independent actions; `parts` are in the order of `names` (see `nest`)."""

    def __init__(self, names: Sequence[str], parts: Sequence[Distribution]) -> None:
        self.names = names
        super().__init__(
            parts, nest.leaves, lambda leaves: nest.unflatten(dict(zip(names, leaves, strict=True)), "actions")
        )


class MultiCategorical(Independent):
    """Several independent choices; actions are […, *shape] with one entry per choice."""

    def __init__(self, logits: Tensor, space: spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        counts, starts = choices(space)
        super().__init__(
            [Categorical(part, start) for part, start in zip(logits.split(counts, -1), starts, strict=True)],
            split=lambda actions: actions.flatten(actions.ndim - len(space.shape)).unbind(-1),
            join=lambda leaves: torch.stack(leaves, -1).unflatten(-1, space.shape),
        )


class Head(nn.Module):
    """A linear layer from features to the parameters of a distribution over one leaf of the action space."""

    options = 0  # number of options if the parameters are their logits, else 0; see `masked`

    def __init__(self, features: int, parameters: int, gain: float = 0.01) -> None:
        super().__init__()
        self.linear = orthogonal(nn.Linear(features, parameters), gain)

    def forward(self, features: Tensor) -> Tensor:
        linear = self.linear
        return linear(features.to(linear.weight.dtype)).float()

    def distribution(self, parameters: Tensor) -> Distribution:
        """Returns the distribution with `parameters` […, P]."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution()")


class CategoricalHead(Head):
    """The head of a Discrete space; parameters are logits."""

    def __init__(self, space: spaces.Discrete, features: int) -> None:
        self.options = int(space.n)
        super().__init__(features, self.options)
        self.start = int(space.start)

    def distribution(self, parameters: Tensor) -> Categorical:
        return Categorical(parameters, self.start)


class MultiCategoricalHead(Head):
    """The head of a MultiDiscrete or MultiBinary space; parameters are the logits of all choices, side by side."""

    def __init__(self, space: spaces.MultiDiscrete | spaces.MultiBinary, features: int) -> None:
        self.options = sum(choices(space)[0])
        super().__init__(features, self.options)
        self.space = space

    def distribution(self, parameters: Tensor) -> MultiCategorical:
        return MultiCategorical(parameters, self.space)


class GaussianHead(Head):
    """The head of a Box of floats; parameters are means and log deviations, which no observation changes."""

    def __init__(self, space: spaces.Box, features: int) -> None:
        super().__init__(features, int(np.prod(space.shape)))
        self.shape = space.shape
        self.log_std = nn.Parameter(torch.zeros(self.linear.out_features))

    def forward(self, features: Tensor) -> Tensor:
        mean = super().forward(features)
        return torch.cat([mean, self.log_std.float().expand_as(mean)], -1)

    def distribution(self, parameters: Tensor) -> DiagonalGaussian:
        mean, log_std = parameters.chunk(2, -1)
        return DiagonalGaussian(mean, log_std, self.shape)


class ValueHead(Head):
    """V(o): one number per row, [T, B]."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1, gain=1.0)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)[..., 0]


def head_for(space: Any, features: int) -> Head:
    """Returns the default head for a leaf of an action space.

    Raises:
        SettingsError: there is none for this space.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalHead(space, features)
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return MultiCategoricalHead(space, features)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, features)
    raise SettingsError(
        f"No head for the action space {space}. Discrete, MultiDiscrete, MultiBinary, Box of floats, and Dict and "
        "Tuple of these have one; for another give ModularNetwork(head=…)."
    )


def masked(parameters: Sequence[Tensor], available: Tensor, options: Sequence[int]) -> tuple[Tensor, ...]:
    """Returns parameters of heads in which unavailable options have probability 0 and add nothing to the entropy.

    Their logits become so low that e^logit is exactly 0 but finite, so log-probabilities stay finite. If a choice has
    no available option, all its options are equally likely. No gradient flows into a replaced logit.

    Args:
        parameters: […, P] of each head.
        available: […, Σ options] 0 or 1: the options of all heads side by side.
        options: number of options of each head; 0 leaves its parameters as they are.
    """
    gone = (available == 0).split(list(options), -1)
    pairs = zip(parameters, gone, strict=True)
    return tuple(logits.masked_fill(part, UNAVAILABLE) if part.shape[-1] else logits for logits, part in pairs)


def choices(space: Any) -> tuple[list[int], list[int]]:
    """Returns how many options each choice of a Discrete, MultiDiscrete or MultiBinary has, and the smallest of each."""
    bounds = Bounds.of(space)
    assert bounds is not None
    low, high = (np.broadcast_to(numbers, space.shape).ravel() for numbers in (bounds.low, bounds.high))
    return (high - low + 1).tolist(), low.tolist()
