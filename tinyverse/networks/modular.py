"""ModularNetwork: trunks → body → heads, checked against the observation and action spaces when it is built.

network = ModularNetwork(observation_space, action_space, trunk=Window(4, NatureConv()), body=LSTM(256))
outputs, state = network(observations, state, is_first)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks.bodies import Stage, as_stage, build_stage, in_full_precision, initial_states, run_stage
from tinyverse.networks.convs import NatureConv
from tinyverse.networks.heads import Distribution, Head, Joint, ValueHead, choices, head_for, masked
from tinyverse.networks.trunks import MLP

AVAILABLE = "available_actions"  # key of a Dict observation: the action mask
Trunk = nn.Module | Mapping[str, nn.Module]  # one for the only leaf, or a dict by leaf name


class Outputs(NamedTuple):
    """What a network returns for every row."""

    policy: tuple[Tensor, ...]  # [T, B, P] parameters, one tensor per leaf of the action space
    values: Tensor  # [T, B]


class ModularNetwork(nn.Module):
    """A policy and a value function for any tree of observations and any tree of actions.

    The observation "available_actions" of a Dict masks actions and is no input: 1 for options that the agent may
    choose, 0 for others, which get probability 0. It has one number for each option of a Discrete action space. For
    MultiDiscrete, MultiBinary and trees it has the options of all choices side by side, in order.

    Args:
        observation_space, action_space: of one environment (Gymnasium). Discrete observations become one-hot.
        trunk: a module [N, …] → [N, D] or a `Stage`, for the only leaf; or a dict of them by leaf name ("image",
            "pair.0"). A leaf without one gets NatureConv if it is a uint8 image of 36 × 36 or more, else MLP(64, 64).
        body: a module or `Stage` for the concatenated embeddings; None: they are the features.
        head: `head(space, features)` makes the policy head for one leaf of the action space.
        value_trunk: as `trunk`, for the value alone, which then shares nothing with the policy and has no body; None:
            value and policy use the same features.
    Raises:
        SettingsError: two parts do not fit together; the message names both.
    """

    trunks: Any  # ModuleLists; typed Any because mypy knows their items only as Module
    heads: Any
    value_trunks: nn.ModuleList | None
    body: Stage | None

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        *,
        trunk: Trunk | None = None,
        body: nn.Module | None = None,
        head: Callable[[Any, int], Head] = head_for,
        value_trunk: Trunk | None = None,
    ) -> None:
        super().__init__()
        leaves = leaves_of(observation_space)
        self.mask_at = list(leaves).index(AVAILABLE) if AVAILABLE in leaves else None
        available = leaves.pop(AVAILABLE, None)
        if not leaves:
            raise SettingsError(
                f"The observations {observation_space} have nothing to see. Add a leaf beside {AVAILABLE!r}."
            )
        self.encoders = [_Encoder(space) for space in leaves.values()]
        self.trunks, features = self._towards(leaves, trunk)
        self.value_trunks, self.body, value_features = None, None, 0
        if value_trunk is not None:
            self.value_trunks, value_features = self._towards(leaves, value_trunk)
        if body is not None:
            self.body = as_stage(body)
            features = build_stage(self.body, (features,), torch.float32, f"{features} embeddings of the trunks")
        self.action_names = [f"actions.{name}".rstrip(".") for name in leaves_of(action_space)]
        self.heads = nn.ModuleList(_fitting(head, space, features) for space in leaves_of(action_space).values())
        self.value = ValueHead(value_features or features)
        self.options = [layer.options for layer in self.heads]
        if available is not None:
            _check_mask(available, action_space, sum(self.options))

    def _towards(self, leaves: dict[str, Any], trunk: Trunk | None) -> tuple[nn.ModuleList, int]:
        """Builds a trunk for each leaf and returns them with the total number of embeddings."""
        chosen = trunks_of(leaves, trunk)
        stages = [as_stage(chosen.get(name) or _usual_trunk(space)) for name, space in leaves.items()]
        sizes = [
            build_stage(stage, encoder.shape, encoder.dtype, f"observation {name or 'space'} {space}")
            for (name, space), encoder, stage in zip(leaves.items(), self.encoders, stages, strict=True)
        ]
        return nn.ModuleList(stages), sum(sizes)

    def initial_state(self, n: int) -> nest.Tree:
        """Returns the recurrent state of `n` environments at the beginning of an episode: a dict by stage, or `()`."""
        stages: dict[str, Any] = {f"trunk{i}": stage for i, stage in enumerate(self.trunks)}
        stages |= {f"value{i}": stage for i, stage in enumerate(self.value_trunks or ())}
        stages |= {} if self.body is None else {"body": self.body}
        return initial_states(stages, n, self.value.linear.weight.device) or ()

    def forward(self, observations: nest.Tree, state: nest.Tree, is_first: Tensor) -> tuple[Outputs, nest.Tree]:
        """Returns the outputs for every row, and the recurrent state after the last.

        Args:
            observations: [T, B, …] per leaf.
            state: the recurrent state before row 0, [B, …] per leaf.
            is_first: [T, B] bool; the state is reset before these rows.
        """
        leaves, state = nest.leaves(observations), dict(state)
        available = None if self.mask_at is None else leaves.pop(self.mask_at)
        inputs = [encoder(leaf) for encoder, leaf in zip(self.encoders, leaves, strict=True)]

        features = _embeddings("trunk", self.trunks, inputs, state, is_first)
        if self.body is not None:
            features = run_stage("body", self.body, features, state, is_first)
        valued = features
        if self.value_trunks is not None:
            valued = _embeddings("value", self.value_trunks, inputs, state, is_first)
        with in_full_precision(is_first.device):
            policy = tuple(head(features) for head in self.heads)
            values = self.value(valued)
        if available is not None:
            policy = masked(policy, available.flatten(2), self.options)
        return Outputs(policy, values), state or ()

    def distribution(self, policy: tuple[Tensor, ...]) -> Distribution:
        """Returns the distribution over actions with the parameters `Outputs.policy`, or with some rows of them."""
        parts = [head.distribution(leaf) for head, leaf in zip(self.heads, policy, strict=True)]
        return parts[0] if self.action_names == ["actions"] else Joint(self.action_names, parts)


def _fitting(head: Callable[[Any, int], Head], space: Any, features: int) -> Head:
    """Makes the head of one leaf of the action space and tries it on a row of zeros."""
    layer = head(space, features)
    try:
        with torch.no_grad():
            layer.distribution(layer(torch.zeros(1, 1, features))).mode()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SettingsError(
            f"{type(layer).__name__} does not fit the {features} features before it and the actions {space}. {error}"
        ) from error
    return layer


def _embeddings(kind: str, stages: Any, inputs: list[Tensor], state: dict[str, Any], is_first: Tensor) -> Tensor:
    """Runs each stage on its input and returns the concatenated outputs [T, B, D]."""
    pairs = enumerate(zip(stages, inputs, strict=True))
    parts = [run_stage(f"{kind}{i}", stage, x, state, is_first) for i, (stage, x) in pairs]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


class _Encoder:
    """Leaves a Box as it is, and turns choices [T, B, *shape] into concatenated one-hot vectors [T, B, D]."""

    def __init__(self, space: Any) -> None:
        self.counts: list[int] = []
        if isinstance(space, spaces.Box):
            self.shape, self.dtype = space.shape, torch.from_numpy(np.zeros(0, space.dtype)).dtype
        elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            self.counts, self.starts = choices(space)
            self.shape, self.dtype = (sum(self.counts),), torch.float32
        else:
            raise SettingsError(
                f"ModularNetwork cannot see {space}. Turn it into Box, Discrete, or a Dict or Tuple of them."
            )

    def __call__(self, x: Tensor) -> Tensor:
        if not self.counts:
            return x
        columns = zip(x.flatten(2).unbind(-1) if x.ndim > 2 else (x,), self.counts, self.starts, strict=True)
        return torch.cat([functional.one_hot(column.long() - start, n) for column, n, start in columns], -1).float()


def leaves_of(space: Any) -> dict[str, Any]:
    """Returns leaf spaces by dotted name, in the order of `nest.leaves`; one that is all of the space has the name ""."""
    tree = nest.of_space(space, lambda leaf: leaf)
    return {name[1:].removeprefix("."): leaf for name, leaf in nest.items(tree, "_")}


def _check_mask(available: Any, action_space: Any, options: int) -> None:
    fits = isinstance(available, (spaces.Box, spaces.MultiBinary)) and int(np.prod(available.shape)) == options
    if not fits or not options:
        raise SettingsError(
            f"The observation {AVAILABLE!r} {available} does not fit the action space {action_space}, which has "
            f"{options} options side by side. Give MultiBinary({options}), 1 where an option may be chosen, or rename it."
        )


def trunks_of(leaves: dict[str, Any], trunk: Trunk | None) -> Mapping[str, nn.Module]:
    """Returns the trunks that the user gave, by name.

    Raises:
        SettingsError: they do not fit the observations.
    """
    if trunk is None:
        return {}
    names = ", ".join(leaves) or "no tree"
    if isinstance(trunk, Mapping):
        for name in trunk.keys() - leaves.keys():
            raise SettingsError(f"There is a trunk for {name!r}, but the observations are {names}.")
        return trunk
    if len(leaves) > 1:
        raise SettingsError(f"One trunk for {len(leaves)} observations. Give a dict by name: {names}.")
    return dict.fromkeys(leaves, trunk)


def _usual_trunk(space: Any) -> nn.Module:
    image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
    return NatureConv() if image and sum(side >= 36 for side in space.shape) >= 2 else MLP(64, 64)
