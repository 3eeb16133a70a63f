"""Bodies: from embeddings to features along time. This module has their interface `Stage` and those without own layers.

A stage takes (x [T, B, …], state, is_first [T, B]) and returns (y [T, B, D], new state). The recurrent state is a tree of
[B, …] tensors. It belongs before row 0 and is reset before every row where `is_first` is True. The same forward pass
therefore serves acting (T = 1, the state goes from call to call) and training (a whole slice). Stages with layers of
their own are in `recurrent` and `attention`. Any trunk, such as MLP(256), can be a body without a state.
"""

import contextlib
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks.trunks import Identity


class Stage(nn.Module):
    """A part of a network that sees time. Subclasses define `build`, `forward` and, with a state, `initial_state`."""

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Makes the layers for the shape and dtype of one observation, and returns the number of features."""
        raise NotImplementedError(f"{type(self).__name__} must define build()")

    def initial_state(self, n: int, device: torch.device) -> nest.Tree:
        """Returns the recurrent state of `n` environments at the beginning of an episode; `()` for none."""
        return ()

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        raise NotImplementedError(f"{type(self).__name__} must define forward()")


class FeedForward(Stage):
    """Applies a module from [N, …] to [N, D] to every row by itself. It has no state."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module: Any = Identity() if module is None else module

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        if hasattr(self.module, "build"):
            return int(self.module.build(shape))
        with torch.no_grad():
            return self.module(torch.zeros(2, *shape, dtype=dtype))[0].numel()

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        steps, num_envs = is_first.shape
        return self.module(x.flatten(0, 1)).reshape(steps, num_envs, -1), state


class Stack(Stage):
    """Runs stages one after the other, as in Stack(LSTM(64), GRU(64)). Its state is a dict "stage0", "stage1" …"""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        if not stages:
            raise SettingsError("Stack() has no stages. Give them, as in Stack(LSTM(64), GRU(64)).")
        self.stages: Any = nn.ModuleList(as_stage(stage) for stage in stages)

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        features = self.stages[0].build(shape, dtype)
        for before, stage in itertools.pairwise(self.stages):
            features = build_stage(stage, (features,), torch.float32, f"{features} features of {kind(before)}")
        return features

    def initial_state(self, n: int, device: torch.device) -> nest.Tree:
        return initial_states({f"stage{i}": stage for i, stage in enumerate(self.stages)}, n, device)

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        state = dict(state)
        for i, stage in enumerate(self.stages):
            x = run_stage(f"stage{i}", stage, x, state, is_first)
        return x, state


class Window(Stage):
    """Stacks the newest `k` observations, in front of a trunk. Synonyms: frame stack, frame history.

    Images (H, W) become (k, H, W), images (C, H, W) become (k·C, H, W), vectors (D,) become (k, D). The newest comes
    last; places before the episode's beginning are zeros. The recurrent state is the last k − 1 observations, so a
    session holds each frame only once.
    """

    def __init__(self, k: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        if k < 2:
            raise SettingsError(f"Window({k}) remembers nothing. Give 2 or more, or leave it out.")
        self.k, self.trunk = k, FeedForward(trunk)

    def build(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        self.shape, self.dtype = shape, dtype
        return self.trunk.build((self.k * shape[0], *shape[1:]) if len(shape) == 3 else (self.k, *shape), dtype)

    def initial_state(self, n: int, device: torch.device) -> nest.Tree:
        return torch.zeros(n, self.k - 1, *self.shape, dtype=self.dtype, device=device)

    def forward(self, x: Tensor, state: nest.Tree, is_first: Tensor) -> tuple[Tensor, nest.Tree]:
        windows = stack_windows(x, state, is_first)
        stacked = windows.flatten(2, 3) if len(self.shape) == 3 else windows
        return self.trunk(stacked, (), is_first)[0], windows[-1, :, 1:]


def stack_windows(frames: Tensor, state: Tensor, is_first: Tensor) -> Tensor:
    """Returns windows of the newest frames of the episode, for all rows at once.

    Args:
        frames: [T, B, …].
        state: [B, k−1, …] the frames before them, oldest first.
        is_first: [T, B] bool; frames before such a row belong to another episode and become zeros.
    Returns:
        [T, B, k, …], newest last.
    """
    (steps, num_envs), past = is_first.shape, state.shape[1]
    nothing = torch.zeros_like(frames[:1])
    history = torch.cat([state.transpose(0, 1), frames, nothing])  # row t of `frames` is at past + t
    rows = torch.arange(steps, device=frames.device)[:, None]
    begun = torch.where(is_first, rows + past, 0)
    oldest = (begun.cummax(0).values if steps > 1 else begun)[..., None]  # ONNX has no cummax
    wanted = rows[..., None] + torch.arange(past + 1, device=frames.device)
    wanted = torch.where(wanted < oldest, past + steps, wanted)  # [T, B, k]
    wanted = wanted * num_envs + torch.arange(num_envs, device=frames.device)[:, None]
    return history.flatten(0, 1).index_select(0, wanted.flatten()).unflatten(0, (steps, num_envs, past + 1))


def as_stage(module: nn.Module | None) -> Stage:
    """Returns the module if it is a stage, else a FeedForward around it; for None one that passes inputs through.

    Raises:
        SettingsError: it is no module, but for example a class.
    """
    if module is not None and not isinstance(module, nn.Module):
        raise SettingsError(f"{module!r} is no part of a network. Give a module, as in trunk=MLP(64), body=LSTM(256).")
    return module if isinstance(module, Stage) else FeedForward(module)


def kind(stage: Stage) -> str:
    """Returns the name of the class that the user wrote: of the stage, or of the module in it."""
    return type(getattr(stage, "module", stage)).__name__


def build_stage(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype, source: str) -> int:
    """Builds the stage, tries it on two rows of zeros and returns its number of features.

    Args:
        source: what the stage's input is, for messages.
    Raises:
        SettingsError: the stage cannot take `shape`, or its output differs from what `build` returned.
    """
    inner = kind(getattr(stage, "trunk", stage))
    try:
        features = stage.build(shape, dtype)
        with torch.no_grad():
            rows, is_first = torch.zeros(1, 2, *shape, dtype=dtype), torch.zeros(1, 2, dtype=torch.bool)
            made = tuple(stage(rows, stage.initial_state(2, rows.device), is_first)[0].shape)
    except (SettingsError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SettingsError(f"{inner} does not fit {source}: it got shape {shape}. {error}") from error
    if made != (1, 2, features):
        raise SettingsError(
            f"{inner} promises {features} features of {source}, but makes {made} of two rows of it, "
            f"wanted (1, 2, {features}). What does its build() return?"
        )
    return features


def run_stage(name: str, stage: Stage, x: Tensor, state: dict[str, Any], is_first: Tensor) -> Tensor:
    """Runs the stage and returns its outputs; replaces its recurrent state `state[name]`, if it has one."""
    if name not in state:
        return stage(x, (), is_first)[0]
    y, state[name] = stage(x, state[name], is_first)
    return y


def initial_states(stages: dict[str, Stage], n: int, device: torch.device) -> dict[str, Any]:
    """Returns the initial recurrent states of those stages that have one, by name."""
    states = {name: stage.initial_state(n, device) for name, stage in stages.items()}
    return {name: state for name, state in states.items() if nest.leaves(state)}


def in_full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off, because sums along time and log-probabilities lose too much precision in bfloat16."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
