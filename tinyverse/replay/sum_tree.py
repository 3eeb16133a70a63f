"""Sum tree: draws slots in proportion to their priorities, without adding all of them up for every draw.

Every node is the sum of `FAN` below it: a draw goes down from the root, a change goes up from a leaf, and both touch
only log_FAN(size) rows per slot. It works on whole batches of slots, so a few tensor operations do for all of them.
"""

import itertools

import torch
from torch import Tensor

FAN = 64  # children of a node; wide, because an operation costs more than its numbers
ALMOST = 1 - 1e-12  # keeps what rounding adds from leading past the last slot that has a priority


class SumTree:
    """`size` priorities of 0 or more, float64 on a device. One of 0 is never drawn."""

    def __init__(self, size: int, device: str | torch.device = "cpu") -> None:
        self._levels: list[Tensor] = []  # [nodes, FAN], from the root to the leaves
        while not self._levels or size > 1:
            size = -(-size // FAN)
            self._levels.insert(0, torch.zeros(size, FAN, dtype=torch.float64, device=device))

    @property
    def total(self) -> Tensor:
        """Sum of all priorities, 0-d."""
        return self._levels[0].sum()

    @property
    def largest(self) -> Tensor:
        """The largest of all priorities, 0-d."""
        return self._levels[-1].max()

    def get(self, slots: Tensor) -> Tensor:
        """[B] priorities of slots [B]."""
        return self._levels[-1].view(-1)[slots]

    def set(self, slots: Tensor, priorities: Tensor) -> None:
        """Changes the priorities of slots [B] to [B] float64; of a slot that comes twice, to its larger one."""
        self._levels[-1].view(-1).scatter_reduce_(0, slots, priorities, "amax", include_self=False)
        for below, level in itertools.pairwise(reversed(self._levels)):
            slots = slots // FAN
            level.view(-1)[slots] = below[slots].sum(-1)  # made anew: differences would add up rounding errors

    def draw(self, places: Tensor) -> Tensor:
        """Slots [B] that lie at these places [B], 0 ≤ place < 1, of the line on which each is as long as its priority.

        Uniform places draw each slot with the probability priority / total. The total must not be 0.
        """
        slots, rest = torch.zeros_like(places, dtype=torch.int64), places * self.total
        for level in self._levels:
            sums = level[slots]
            ends = sums.cumsum(-1)
            rest = torch.minimum(rest, ends[:, -1] * ALMOST)
            child = ((ends > rest[:, None]) & (sums > 0)).byte().argmax(-1, keepdim=True)  # the first such
            rest = (rest - (ends - sums).gather(-1, child)[:, 0]).clamp(min=0)
            slots = slots * FAN + child[:, 0]
        return slots
