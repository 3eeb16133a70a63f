"""Squashed Gaussians: policies over a bounded Box, and critics of their actions, for SAC.

actor = SquashedActor(observation_space, action_space, body=MLP(256, 256))
critic = actor.critic()
values = critic(observations, actions)
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks.heads import DiagonalGaussian, Head
from tinyverse.networks.modular import ModularNetwork, Trunk, leaves_of, trunks_of
from tinyverse.networks.trunks import MLP, Identity

LOG_STD = (-20.0, 2.0)  # bounds of the log deviation, as in the code of Haarnoja et al.
EDGE = 1 - 1e-6  # clips unit actions before atanh, which is infinite at 1


class SquashedGaussian(DiagonalGaussian):
    """Normal numbers, squashed by tanh and scaled to the bounds of a Box (Haarnoja et al. 2018b, appendix C).

        u ~ N(mean, std),    unit action x = tanh(u) in (−1, 1),    action a = centre + reach · x
        log π(x) = log N(u) − Σ_d log(1 − tanh²(u_d)),    log π(a) = log π(x) − Σ_d log reach_d

    Args:
        mean, log_std: […, D].
        centre, reach: [D] middle and half width of the Box, flattened.
        shape: of one action; it has D numbers.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, centre: Tensor, reach: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(mean, log_std, shape)
        self.centre, self.reach = centre, reach

    def rsample(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Returns unit actions […, D] through which gradients flow, and their log π(x) […]."""
        raw = self._raw_sample(generator)
        return raw.tanh(), self._log_prob_of_raw(raw)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns log π(a) […]. The density has no value on a bound, so actions there are moved inwards a little."""
        raw = unit_actions(actions, self.centre, self.reach, self.shape).clamp(-EDGE, EDGE).atanh()
        return self._log_prob_of_raw(raw) - self.reach.log().sum()

    def entropy(self) -> Tensor:
        """Returns an estimate […]: −log π(a) of one sample, with gradient. There is no closed form."""
        return self.reach.log().sum() - self.rsample()[1]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._action(self.rsample(generator)[0])

    def mode(self) -> Tensor:
        """Returns the median action, of tanh(mean)."""
        return self._action(self.mean.tanh())

    def _log_prob_of_raw(self, raw: Tensor) -> Tensor:
        return (self._log_densities(raw) - log_slope_of_tanh(raw)).sum(-1)

    def _action(self, unit: Tensor) -> Tensor:
        return self._shaped(self.centre + self.reach * unit)


def unit_actions(actions: Tensor, centre: Tensor, reach: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns unit actions […, D] in [−1, 1] for actions […, *shape], clipped to the bounds as by the pool."""
    flat = actions.to(reach.dtype).reshape(*actions.shape[: actions.ndim - len(shape)], len(reach))
    return ((flat - centre) / reach).clamp(-1, 1)


def log_slope_of_tanh(raw: Tensor) -> Tensor:
    """Returns log(1 − tanh²(u)) = 2 (log 2 − u − softplus(−2u)), which is exact even where tanh(u) rounds to 1."""
    return 2 * (math.log(2) - raw - functional.softplus(-2 * raw))


class SquashedGaussianHead(Head):
    """The head of a Box of floats with finite bounds; parameters are means and log deviations."""

    centre: Tensor
    reach: Tensor

    def __init__(self, space: spaces.Box, features: int) -> None:
        _check_bounded(space)
        super().__init__(features, 2 * math.prod(space.shape))
        self.shape = space.shape
        low, high = (torch.from_numpy(np.float32(bound).flatten()) for bound in (space.low, space.high))
        self.register_buffer("centre", (high + low) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)

    def distribution(self, parameters: Tensor) -> SquashedGaussian:
        mean, log_std = parameters.chunk(2, -1)
        return SquashedGaussian(mean, log_std.clamp(*LOG_STD), self.centre.float(), self.reach.float(), self.shape)


class SquashedActor(ModularNetwork):
    """A policy of squashed Gaussians, which can make its critics. It has no value function of its own.

    Args:
        observation_space, action_space: of one environment; the actions are one Box with finite bounds.
        trunk: as of `ModularNetwork`; None: flattened observations (for images pass NatureConv()).
        body: from the embeddings (in critics: and the action) to features; None: MLP(256, 256).
    Raises:
        SettingsError: the action space is another, a part has a recurrent state, or two parts do not fit.
    """

    def __init__(
        self, observation_space: Any, action_space: Any, *, trunk: Trunk | None = None, body: nn.Module | None = None
    ) -> None:
        _check_bounded(action_space)
        leaves, body = leaves_of(observation_space), MLP(256, 256) if body is None else body
        trunks = {name: Identity() for name in leaves} | dict(trunks_of(leaves, trunk))
        parts = copy.deepcopy((trunks, body))  # copied before they have layers, so that critics make their own
        super().__init__(observation_space, action_space, trunk=trunks, body=body, head=SquashedGaussianHead)
        if self.initial_state(1) != ():
            raise SettingsError(
                "SquashedActor got a trunk or body that remembers. SAC learns single steps: leave it out."
            )
        self.value.requires_grad_(False)  # unused
        self.actions = math.prod(action_space.shape)  # D, the numbers in an action
        self._critic = (observation_space, action_space, *parts)

    def unit(self, actions: Tensor) -> Tensor:
        """Returns unit actions […, D] in [−1, 1] for actions […, *shape] as the environment takes them."""
        head: Any = self.heads[0]
        return unit_actions(actions, head.centre.float(), head.reach.float(), head.shape)

    def critic(self) -> "Critic":
        """Returns a new critic with trunks and a body like this network's, on its device."""
        observation_space, action_space, trunks, body = self._critic
        critic = Critic(observation_space, action_space, copy.deepcopy(trunks), copy.deepcopy(body))
        return critic.to(self.value.linear.weight.device)


class Critic(nn.Module):
    """Q(o, a): the embeddings and the unit action side by side, then a body, then one number."""

    def __init__(
        self, observation_space: Any, action_space: spaces.Box, trunks: Mapping[str, nn.Module], body: nn.Module
    ):
        super().__init__()
        unit = spaces.Box(-1, 1, (math.prod(action_space.shape),))
        inputs = spaces.Dict(actions=unit, observations=observation_space)
        trunks = {f"observations.{name}".rstrip("."): part for name, part in trunks.items()}
        self.network = ModularNetwork(inputs, spaces.Tuple(()), trunk={"actions": Identity(), **trunks}, body=body)

    def forward(self, observations: nest.Tree, actions: Tensor) -> Tensor:
        """Returns Q [T, B] of observations [T, B, …] per leaf and unit actions [T, B, D]."""
        is_first = torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device)
        return self.network({"actions": actions, "observations": observations}, (), is_first)[0].values


def _check_bounded(space: Any) -> None:
    floats = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not (floats and space.is_bounded() and np.all(space.low < space.high)):
        raise SettingsError(
            f"A squashed Gaussian wants a Box of floats with finite bounds, low < high; the action space is {space}. "
            "Rescale the actions in make_env, or use the usual head (Gaussian, or Categorical for choices)."
        )
