"""ModularNetwork: trunks → body → heads, put together and checked against the two spaces when it is built.

network = ModularNetwork(observation_space, action_space, trunk=Window(4, NatureConv()), body=LSTM(256))
outputs, memory = network(observations, memory, first)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from tinyverse import nest
from tinyverse.errors import SettingsError
from tinyverse.networks.bodies import FeedForward, Stage, initial_memories
from tinyverse.networks.heads import Distribution, Head, Joint, ValueHead, choices, head_for
from tinyverse.networks.trunks import MLP, NatureConv


class Outputs(NamedTuple):
    """What a network says about every row."""

    policy: tuple[Tensor, ...]  # [T, B, P] parameters, one tensor per leaf of the action space
    values: Tensor  # [T, B]


class ModularNetwork(nn.Module):
    """A policy and a value function over any tree of observations and any tree of actions.

    Args:
        observation_space, action_space: of one game (Gymnasium). Discrete leaves of observations become one-hot.
        trunk: a module [N, …] → [N, D], or a `Stage`, for the only leaf; or a dict of them by leaf name ("image",
            "pair.0"). A leaf without one gets NatureConv if it is an image of 36 × 36 bytes or more, else MLP(64, 64).
        body: the same, for the embeddings side by side; none: they are the features.
        head: `head(space, features)` makes the policy head of one leaf of the action space.
    Raises:
        SettingsError: two ends do not fit; the message names both.
    """

    encoders: Any  # lists of modules, whose items a type checker would take for any module
    trunks: Any
    heads: Any

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        trunk: nn.Module | Mapping[str, nn.Module] | None = None,
        body: nn.Module | None = None,
        head: Callable[[Any, int], Head] = head_for,
    ) -> None:
        super().__init__()
        leaves = _leaves(observation_space)
        chosen = _trunks(leaves, trunk)
        self.encoders = nn.ModuleList(_encoder(space) for space in leaves.values())
        self.trunks = nn.ModuleList(_stage(chosen.get(name) or _usual_trunk(space)) for name, space in leaves.items())
        sizes = [
            _build(stage, encoder.shape, encoder.dtype, f"observation {name or 'space'} {space}")
            for (name, space), encoder, stage in zip(leaves.items(), self.encoders, self.trunks, strict=True)
        ]
        self.body = _stage(body)
        features = _build(self.body, (sum(sizes),), torch.float32, f"{sum(sizes)} embeddings of the trunks")
        self.action_names = list(nest.flatten(nest.of_space(action_space, lambda space: space), "actions"))
        self.heads = nn.ModuleList(head(space, features) for space in _leaves(action_space).values())
        self.value = ValueHead(features)

    def initial_memory(self, n: int) -> nest.Tree:
        """Memory of `n` games at the beginning of an episode: a dict by stage, `()` where nothing remembers."""
        return initial_memories(self._stages(), n, self.value.linear.weight.device) or ()

    def forward(self, observations: nest.Tree, memory: nest.Tree, first: Tensor) -> tuple[Outputs, nest.Tree]:
        """What the network says about every row, and the memory after the last.

        Args:
            observations: [T, B, …] per leaf.
            memory: [B, …] per leaf, before row 0.
            first: [T, B] bool; memory starts anew before these rows.
        """
        memory = dict(memory)

        def run(name: str, stage: Stage, x: Tensor) -> Tensor:
            y, after = stage(x, memory.get(name, ()), first)
            if name in memory:
                memory[name] = after
            return y

        leaves = zip(self.encoders, self.trunks, nest.leaves(observations), strict=True)
        embeddings = [run(f"trunk{i}", stage, encoder(x)) for i, (encoder, stage, x) in enumerate(leaves)]
        features = run("body", self.body, torch.cat(embeddings, -1) if len(embeddings) > 1 else embeddings[0])
        with torch.autocast(features.device.type, enabled=False):
            return Outputs(tuple(head(features) for head in self.heads), self.value(features)), memory or ()

    def distribution(self, policy: tuple[Tensor, ...]) -> Distribution:
        """The distribution over actions that `Outputs.policy`, or some rows of it, describes."""
        parts = [head.distribution(leaf) for head, leaf in zip(self.heads, policy, strict=True)]
        return parts[0] if self.action_names == ["actions"] else Joint(self.action_names, parts)

    def _stages(self) -> dict[str, Stage]:
        return {**{f"trunk{i}": stage for i, stage in enumerate(self.trunks)}, "body": self.body}


class _Numbers(nn.Module):
    """A Box as it is."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.shape, self.dtype = space.shape, torch.from_numpy(np.zeros(0, space.dtype)).dtype

    def forward(self, x: Tensor) -> Tensor:
        return x


class _OneHot(nn.Module):
    """Choices [T, B, *shape] as ones and zeros [T, B, D], side by side."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.counts, self.starts = choices(space)
        self.shape, self.dtype = (sum(self.counts),), torch.float32

    def forward(self, x: Tensor) -> Tensor:
        columns = zip(x.flatten(2).unbind(-1) if x.ndim > 2 else (x,), self.counts, self.starts, strict=True)
        return torch.cat([functional.one_hot(column.long() - start, n) for column, n, start in columns], -1).float()


def _leaves(space: Any) -> dict[str, Any]:
    """Leaf spaces by dotted name, in the order of `nest.leaves`; a space that is no tree has the name ""."""
    tree = nest.of_space(space, lambda leaf: leaf)
    return {name[1:].removeprefix("."): leaf for name, leaf in nest.items(tree, "_")}


def _trunks(leaves: dict[str, Any], trunk: nn.Module | Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    if trunk is None:
        return {}
    if isinstance(trunk, Mapping):
        for name in trunk.keys() - leaves.keys():
            raise SettingsError(f"There is a trunk for {name!r}, but the observations are {_names(leaves)}.")
        return trunk
    if len(leaves) > 1:
        raise SettingsError(f"One trunk for {len(leaves)} observations. Give a dict by name: {_names(leaves)}.")
    return dict.fromkeys(leaves, trunk)


def _names(leaves: dict[str, Any]) -> str:
    return ", ".join(leaves) or "no tree"


def _encoder(space: Any) -> nn.Module:
    if isinstance(space, spaces.Box):
        return _Numbers(space)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _OneHot(space)
    raise SettingsError(f"ModularNetwork cannot see {space}. Turn it into Box, Discrete, or a Dict or Tuple of them.")


def _usual_trunk(space: Any) -> nn.Module:
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    return NatureConv() if image and sum(side >= 36 for side in space.shape) >= 2 else MLP(64, 64)


def _stage(module: nn.Module | None) -> Stage:
    return module if isinstance(module, Stage) else FeedForward(module)


def _build(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype, source: str) -> int:
    """The stage's number of features; whatever it says against its input is said again with both ends named."""
    try:
        return stage.build(shape, dtype)
    except (SettingsError, RuntimeError, ValueError, TypeError, IndexError) as error:
        inner = getattr(stage, "module", getattr(stage, "trunk", stage))
        raise SettingsError(f"{type(inner).__name__} does not fit {source}: it got shape {shape}. {error}") from error
