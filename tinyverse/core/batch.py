"""Batch: what `train_step` gets: B slices of T steps, time first, as tensors on the trainer's device."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import torch

from tinyverse.core import nest
from tinyverse.core.session import FIELDS


@dataclasses.dataclass
class Batch:
    """B slices of T consecutive steps, one environment each. Row t is what `Session` draws.

    Rows 0 … burn_in − 1 only warm up the recurrent state: `mask` is 0 there.
    """

    observations: nest.Tree  # [T+1, B, …] per leaf, as the environment gave them
    actions: nest.Tree  # [T, B, …] per leaf
    rewards: torch.Tensor  # [T, B] float32, raw
    terminated: torch.Tensor  # [T, B] bool
    truncated: torch.Tensor  # [T, B] bool
    valid: torch.Tensor  # [T, B] bool; False: a reset row, it did not happen
    initial_state: nest.Tree  # [B, …] per leaf
    extras: dict[str, torch.Tensor]  # [T, B, …] what the agent added
    weights: torch.Tensor  # [B] importance weights of the sampling, 1 where it is uniform
    lag: torch.Tensor  # [B] updates since the weights that played the slice
    slots: torch.Tensor  # [B] the sessions' numbers in the replay, whose slots they go round; priorities go back by it
    burn_in: int = 0
    human: torch.Tensor | None = None  # [B] bool: a person played the slice; None: nobody knows
    sources: tuple[str, ...] = ()  # [B] `Session.source` of each; () in a part of a batch

    @functools.cached_property
    def is_first(self) -> torch.Tensor:
        """[T+1, B] bool: the state is reset before this observation. Row 0 is in `initial_state` already."""
        return torch.cat([torch.zeros_like(self.valid[:1]), ~self.valid])

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """[T, B] float32: 1 for rows that happened and count in losses."""
        mask = self.valid.float()
        mask[: self.burn_in] = 0
        return mask

    @property
    def continues(self) -> torch.Tensor:
        """[T, B] float32: 0 where an episode ended in any way; nothing flows back over that row."""
        return (~(self.terminated | self.truncated)).float()

    def columns(self, which: torch.Tensor) -> "Batch":
        """The slices at these places."""

        def cut(name: str) -> nest.Tree:
            in_time = FIELDS.get(name) is not None  # [T, B, …]; the others are [B, …]
            return nest.map(lambda leaf: leaf[:, which] if in_time else leaf[which], getattr(self, name))

        names = {field.name for field in dataclasses.fields(self)} - {"burn_in", "sources"}
        names -= set() if self.human is not None else {"human"}
        return dataclasses.replace(self, **{name: cut(name) for name in names}, sources=())

    def discounts(self, discount: float) -> torch.Tensor:
        """[T, B] float32: `discount`, and 0 where the episode terminated."""
        return discount * (~self.terminated).float()

    def numpy(self) -> SimpleNamespace:
        """Every field and `is_first`, `mask`, `continues` as NumPy arrays, for learners without torch (no copy on a CPU)."""

        def convert(value: Any) -> Any:
            return value.cpu().numpy() if isinstance(value, torch.Tensor) else value

        names = [field.name for field in dataclasses.fields(self)] + ["is_first", "mask", "continues"]
        return SimpleNamespace(**{name: nest.map(convert, getattr(self, name)) for name in names})
