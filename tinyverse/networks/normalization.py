"""Normalisation of observations and rewards by running means and standard deviations.

    Normalized(MLP(64, 64))      a trunk for observations of mean 0 and standard deviation 1
    RewardNormalizer(discount)   a learner's rewards, divided by the standard deviation of their discounted sums

The statistics are buffers, so checkpoints hold them, and published weights hold those that acting needs.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.core import distributed
from tinyverse.core.errors import SpecError
from tinyverse.networks import FeedForward

ROUNDING, TINY = 1e-6, 1e-24  # of float32, relative; variance
KNOWN = 1000  # rows from which on the statistics say what is absurd
FAR = 100.0  # deviations from the mean, to which rows are clipped before they are added


class RunningMeanStd(nn.Module):
    """Mean and variance of all rows so far, merged batch by batch (Chan, Golub & LeVeque 1979, eq. 2.1).

        δ = m − mean,   mean += δ n / N,   M₂ += M₂ of the batch + δ² n (N − n) / N,   variance = M₂ / N

    Args:
        shape: of one row; each element has its own statistics.
    Attributes:
        count, mean, variance: buffers, always float64; 0, 0 and 1 before the first row.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Adds rows [N, *shape] of all ranks, except those where `mask` [N] is 0.

        Raises:
            SpecError: the rows have another shape.
        """
        if rows.shape[1:] != self.mean.shape:
            raise SpecError(
                f"RunningMeanStd got rows of shape {tuple(rows.shape[1:])}, wanted {tuple(self.mean.shape)}."
            )
        rows = rows.double()
        far = torch.where(self.count >= KNOWN, FAR * self.deviation.double(), torch.inf)
        rows = rows.clamp(self.mean - far, self.mean + far)  # one absurd row must not move the statistics for ever
        share = torch.ones(len(rows), device=rows.device) if mask is None else mask
        share = share.double().reshape(-1, *[1] * (rows.ndim - 1))
        number = distributed.total(share.sum())
        mean = distributed.total((rows * share).sum(0)) / number.clamp(min=1)
        squares = distributed.total(((rows - mean).square() * share).sum(0))
        total, delta = self.count + number, mean - self.mean
        safe = total.clamp(min=1)
        squares = squares + self.variance * self.count + delta.square() * self.count * number / safe
        self.variance.copy_(torch.where(total > 0, squares / safe, self.variance))
        self.mean.add_(delta * number / safe)
        self.count.copy_(total)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation, [*shape] float32; 1 where there is none but the rounding of float32 at the mean."""
        rounding = (ROUNDING * self.mean).square() + TINY
        return torch.where(self.variance > rounding, self.variance, 1.0).sqrt().float()

    def _apply(self, function: Any, recurse: bool = True) -> "RunningMeanStd":
        """Moves to the network's device but stays float64, because bfloat16 has only 3 digits."""
        kept = {name: buffer.clone() for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(function, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self


class Normalized(nn.Module):
    """A trunk whose observations are normalised to mean 0 and standard deviation 1 and clipped to ± `clip`.

    A forward pass updates the statistics only where gradients are recorded, which is in training. Players, evaluations
    and bootstrap values do not change them, and `eval()` freezes them. A batch is normalised by the statistics before
    it, so its actions get the same probabilities as in play.

    Args:
        trunk: the module that gets normalised observations; None: they are the embedding.
    """

    def __init__(self, trunk: nn.Module | None = None, *, clip: float = 10.0) -> None:
        super().__init__()
        self.trunk, self.clip = FeedForward(trunk), clip
        self.later: list[Tensor] | None = None  # rows to add, see `statistics_afterwards`

    def build(self, shape: tuple[int, ...]) -> int:
        self.moments = RunningMeanStd(shape)
        return self.trunk.build(shape, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        moments = self.moments
        # statistics from before the update; float64, because the difference may be of large numbers
        normal = ((x.double() - moments.mean).float() / moments.deviation).clamp(-self.clip, self.clip)
        if self.training and torch.is_grad_enabled():
            if self.later is None:
                moments.update(x)
            else:
                self.later.append(x.detach())
        return self.trunk.module(normal)


@contextlib.contextmanager
def statistics_afterwards(network: nn.Module, passes: int) -> Iterator[None]:
    """Leaves the statistics of each `Normalized` as they are until the end, and then adds the rows of the first passes.

    For an algorithm of several steps on one batch: its ratios compare the policy with that of the players, so the
    observations must look the same in each step.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Normalized)]
    for layer in layers:
        layer.later = []
    try:
        yield
    finally:
        for layer in layers:
            rows, layer.later = layer.later, None
            if rows:
                layer.moments.update(torch.cat(rows[:passes]))


class RewardNormalizer(nn.Module):
    """Divides rewards by the running standard deviation of their discounted sums (Engstrom et al. 2020, section 3).

        R_t = γ R_{t−1} + r_t from the episode's beginning,    r_t / √Var(R)

    Targets then have a size of about 1 in any environment, so the same learning rate works. The sums begin at 0 in each
    slice, which does not know the rows before it; the shorter slices are, the smaller is the deviation.

    Args:
        discount: γ.
        clip: normalised rewards are clipped to ± this.
    """

    def __init__(self, discount: float, *, clip: float = 10.0) -> None:
        super().__init__()
        self.discount, self.clip, self.moments = discount, clip, RunningMeanStd()

    def forward(self, rewards: Tensor, continues: Tensor, mask: Tensor) -> Tensor:
        """Updates the statistics with the rewards where `mask` is 1, and returns the normalised rewards [T, B].

        Args:
            rewards, continues, mask: [T, B], as of a `Batch`.
        """
        total, sums = torch.zeros_like(rewards[0]), []
        for reward, goes_on in zip(rewards.unbind(), continues.unbind(), strict=True):
            sums.append(reward + self.discount * total)  # R_t
            total = sums[-1] * goes_on
        self.moments.update(torch.stack(sums).flatten(), mask.flatten())
        return (rewards / self.moments.deviation).clamp(-self.clip, self.clip)
