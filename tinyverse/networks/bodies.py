"""Bodies: from embeddings to features along time. What remembers lives here: LSTM, and Window around a trunk.

A stage takes (x [T, B, …], memory, first [T, B]) and returns (y [T, B, D], new memory). Memory is a tree of [B, …]
tensors as they were before row 0, and it starts anew before every row where `first` holds. So one forward serves
acting (T = 1, memory handed from call to call) and training (a whole slice, memory from its beginning).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse import nest
from tinyverse.errors import SettingsError
from tinyverse.networks.trunks import Identity, orthogonal


class Stage(nn.Module):
    """A part of a network that sees time. Subclasses define `build`, `forward` and, with memory, `initial_memory`."""

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Makes the layers for one observation's shape and dtype; returns the number of features."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def initial_memory(self, n: int, device: torch.device) -> nest.Tree:
        """Memory of `n` games at the beginning of an episode; `()` for none."""
        return ()

    def forward(self, x: Tensor, memory: nest.Tree, first: Tensor) -> tuple[Tensor, nest.Tree]:
        raise NotImplementedError(f"{type(self).__name__} must define forward()")


class FeedForward(Stage):
    """Any module from [N, …] to [N, D], applied to every row by itself. Remembers nothing."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module: Any = Identity() if module is None else module

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        if hasattr(self.module, "build"):
            return int(self.module.build(shape))
        with torch.no_grad():
            return int(self.module(torch.zeros(2, *shape, dtype=dtype)).shape[1])

    def forward(self, x: Tensor, memory: nest.Tree, first: Tensor) -> tuple[Tensor, nest.Tree]:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2]), memory


class LSTM(Stage):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); its memory is {"h", "c"}, each [B, size] float32."""

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.size = size

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        self.lstm = orthogonal(nn.LSTM(Identity().build(shape), self.size), gain=1.0)
        return self.size

    def initial_memory(self, n: int, device: torch.device) -> nest.Tree:
        return {name: torch.zeros(n, self.size, device=device) for name in ("h", "c")}

    def forward(self, x: Tensor, memory: nest.Tree, first: Tensor) -> tuple[Tensor, nest.Tree]:
        dtype: torch.dtype = self.lstm.weight_ih_l0.dtype  # type: ignore[assignment]
        x, state = x.flatten(2).to(dtype), (memory["h"][None].to(dtype), memory["c"][None].to(dtype))
        kept = (~first).to(dtype)[..., None]
        outputs = []
        with torch.autocast(x.device.type, enabled=False):  # the recurrence loses too much in bfloat16
            for start, stop in itertools.pairwise(_pieces(first)):
                output, state = self.lstm(x[start:stop], (state[0] * kept[start], state[1] * kept[start]))
                outputs.append(output)
        return torch.cat(outputs), {"h": state[0][0].float(), "c": state[1][0].float()}


def _pieces(first: Tensor) -> list[int]:
    """Rows where some game starts anew, with 0 and T: between them the fused kernel runs without a stop."""
    restarts = first[1:].any(1).nonzero().flatten() + 1
    return [0, *restarts.tolist(), len(first)]  # CPU–GPU sync


class Window(Stage):
    """The newest `k` observations at once, put before a trunk. Synonyms: frame stack, frame history.

    Images (H, W) become (k, H, W), images (C, H, W) become (k·C, H, W), vectors (D,) become (k, D); the newest comes
    last, and places before the episode's beginning are zeros. The memory is the last k − 1 observations, so a session
    carries every frame once.
    """

    def __init__(self, k: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        if k < 2:
            raise SettingsError(f"Window({k}) remembers nothing. Give 2 or more, or leave it out.")
        self.k, self.trunk = k, FeedForward(trunk)

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        self.shape, self.dtype = shape, dtype
        return self.trunk.build((self.k * shape[0], *shape[1:]) if len(shape) == 3 else (self.k, *shape), dtype)

    def initial_memory(self, n: int, device: torch.device) -> nest.Tree:
        return torch.zeros(n, self.k - 1, *self.shape, dtype=self.dtype, device=device)

    def forward(self, x: Tensor, memory: nest.Tree, first: Tensor) -> tuple[Tensor, nest.Tree]:
        windows = stack_windows(x, memory, first)
        stacked = windows.flatten(2, 3) if len(self.shape) == 3 else windows
        return self.trunk(stacked, (), first)[0], windows[-1, :, 1:]


def stack_windows(frames: Tensor, memory: Tensor, first: Tensor) -> Tensor:
    """Windows of the newest frames of the episode, for all rows at once.

    Args:
        frames: [T, B, …].
        memory: [B, k−1, …] the frames before them, oldest first.
        first: [T, B] bool; frames before such a row belong to another episode and become zeros.
    Returns:
        [T, B, k, …], newest last.
    """
    (steps, games), past = first.shape, memory.shape[1]
    nothing = torch.zeros_like(frames[:1])
    history = torch.cat([memory.transpose(0, 1), frames, nothing])  # row t of `frames` stands at past + t
    rows = torch.arange(steps, device=frames.device)[:, None]
    oldest = torch.where(first, rows + past, 0).cummax(0).values[..., None]
    wanted = rows[..., None] + torch.arange(past + 1, device=frames.device)
    wanted = torch.where(wanted < oldest, past + steps, wanted)  # [T, B, k]
    wanted = wanted * games + torch.arange(games, device=frames.device)[:, None]
    return history.flatten(0, 1).index_select(0, wanted.flatten()).unflatten(0, (steps, games, past + 1))


def initial_memories(stages: dict[str, Stage], n: int, device: torch.device) -> dict[str, Any]:
    """Memory by name of the stages that have one."""
    memories = {name: stage.initial_memory(n, device) for name, stage in stages.items()}
    return {name: memory for name, memory in memories.items() if nest.leaves(memory)}
