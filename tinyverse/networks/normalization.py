"""Normalizers: running means and deviations, so that observations and rewards of any size suit a network.

Normalized(MLP(64, 64))      a trunk that sees observations of mean 0 and deviation 1
RewardNormalizer(discount)        rewards divided by the deviation of their discounted sums, for a learner

Their statistics are buffers: in checkpoints with the rest of a state, and in published weights where acting needs them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.core import distributed
from tinyverse.core.errors import SpecError
from tinyverse.networks import FeedForward


class RunningMeanStd(nn.Module):
    """Mean and variance of all that was seen, merged batch by batch (Chan, Golub & LeVeque 1979, eq. 2.1).

        δ = m − mean,   mean += δ n / N,   M₂ += M₂ of the batch + δ² n (N − n) / N,   variance = M₂ / N

    Args:
        shape: of one thing seen; its elements are counted each by itself.
    Attributes:
        count, mean, variance: buffers, float64 whatever the network is moved to; 0, 0 and 1 before anything is seen.
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
        """Counts rows [N, *shape], of all ranks; those where `mask` [N] is 0 did not happen.

        Raises:
            SpecError: rows of another shape.
        """
        if rows.shape[1:] != self.mean.shape:
            raise SpecError(
                f"RunningMeanStd got rows of shape {tuple(rows.shape[1:])}, wanted {tuple(self.mean.shape)}."
            )
        rows = rows.double()
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
        """[*shape] float32; 1 where nothing has varied by more than 1e-4 yet."""
        return torch.where(self.variance > 1e-8, self.variance, 1.0).sqrt().float()

    def _apply(self, function: Any, recurse: bool = True) -> RunningMeanStd:
        """Goes to another device with its network, but not to a coarser number: bfloat16 has 3 digits."""
        kept = {name: buffer.clone() for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(function, recurse)
        for name, buffer in kept.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)  # type: ignore[union-attr]
        return self


class Normalized(nn.Module):
    """A trunk that gets observations of mean 0 and deviation 1, clipped to ± `clip`.

    The statistics grow by what is passed forward where gradients flow, which is in training: a player, an evaluation or
    a bootstrap value changes nothing, and `eval()` freezes them. A batch is normalised by what was known before it, so
    that actions get the probability again that they were chosen with.

    Args:
        trunk: the module behind; none: the normalised observation is the embedding.
    """

    def __init__(self, trunk: nn.Module | None = None, *, clip: float = 10.0) -> None:
        super().__init__()
        self.trunk, self.clip = FeedForward(trunk), clip

    def build(self, shape: tuple[int, ...]) -> int:
        self.moments = RunningMeanStd(shape)
        return self.trunk.build(shape, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        moments = self.moments
        # before the update; the difference of large numbers is taken in float64
        normal = ((x.double() - moments.mean).float() / moments.deviation).clamp(-self.clip, self.clip)
        if self.training and torch.is_grad_enabled():
            moments.update(x)
        return self.trunk.module(normal)


class RewardNormalizer(nn.Module):
    """Rewards divided by the running deviation of their discounted sums (Engstrom et al. 2020, section 3, item 2).

        R_t = γ R_{t−1} + r_t from the episode's beginning,    r_t / √Var(R)

    So targets have about the size 1 whatever the game counts in, and a learning rate means the same. A slice knows
    nothing of the rows before it, so its sums begin at 0: the shorter slices are, the smaller is the deviation found.

    Args:
        discount: γ.
        clip: scaled rewards are clipped to ± this.
    """

    def __init__(self, discount: float, *, clip: float = 10.0) -> None:
        super().__init__()
        self.discount, self.clip, self.moments = discount, clip, RunningMeanStd()

    def forward(self, rewards: Tensor, traces: Tensor, mask: Tensor) -> Tensor:
        """Scaled rewards [T, B]; these are counted first, and only where `mask` is 1.

        Args:
            rewards, traces, mask: [T, B], as of a `Batch`.
        """
        self.moments.update(self.sums(rewards, traces).flatten(), mask.flatten())
        return (rewards / self.moments.deviation).clamp(-self.clip, self.clip)

    def sums(self, rewards: Tensor, traces: Tensor) -> Tensor:
        """[T, B] R_t; nothing is carried over the end of an episode."""
        total, rows = torch.zeros_like(rewards[0]), []
        for reward, trace in zip(rewards.unbind(), traces.unbind(), strict=True):
            rows.append(reward + self.discount * total)
            total = rows[-1] * trace
        return torch.stack(rows)
