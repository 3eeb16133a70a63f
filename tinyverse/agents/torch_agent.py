"""TorchAgent: an agent made of a PyTorch network: NumPy outside, tensors inside, the network shared with a learner."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tinyverse.agents.agent import Agent
from tinyverse.core import nest
from tinyverse.core.errors import SpecError
from tinyverse.core.weights import Weights
from tinyverse.networks import Categorical, Distribution, Outputs


class Network(Protocol):
    """What TorchAgent and the algorithms need of an `nn.Module`; `ModularNetwork` is one."""

    def initial_memory(self, n: int) -> nest.Tree:
        """Memory [n, …] per leaf on the network's device, or `()`."""

    def __call__(self, observations: nest.Tree, memory: nest.Tree, first: Tensor) -> tuple[Outputs, nest.Tree]:
        """Outputs for rows [T, B, …], and the memory after them."""

    def distribution(self, policy: tuple[Tensor, ...]) -> Distribution:
        """The distribution that `Outputs.policy` describes."""


class TorchAgent(Agent):
    """Acts by a network: samples from its policy, or takes the most likely action.

    Extras are `behaviour_log_prob` [n] and, where one Discrete action is chosen, `behaviour_logits` [n, A]. Actions of
    a Box are the raw samples, which the log-probability belongs to; the pool clips them to the bounds at the
    environment's door.
    """

    def __init__(self, network: Any, device: str | torch.device = "cpu") -> None:
        self.network = network.to(device)
        self._parameter: Tensor = next(network.parameters())  # tells where the network is; walking there costs 10 µs
        self.generator = torch.Generator(self.device)
        self.generator.seed()  # every agent its own; a new generator has always the same seed

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TorchAgent:
        """Moves the network; a player on a CPU with bfloat16 acts about 1.6 times as fast with a copy in it."""
        self.network.to(device=device, dtype=dtype)
        if self.generator.device != self.device:
            self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._parameter.device

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def initial_memory(self, n: int) -> nest.Tree:
        return self.network.initial_memory(n)

    @torch.inference_mode()
    def act(
        self, observations: nest.Tree, memory: nest.Tree, first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, nest.Tree, dict[str, np.ndarray]]:
        rows = nest.map(lambda array: self._tensor(array)[None], observations)
        outputs, memory = self.network(rows, memory, self._tensor(first)[None])
        policy = self.network.distribution(nest.map(lambda rows: rows[0], outputs.policy))
        actions = policy.mode() if greedy else policy.sample(self.generator)
        extras = {"behaviour_log_prob": policy.log_prob(actions)}
        if isinstance(policy, Categorical):
            extras["behaviour_logits"] = policy.logits
        return nest.map(_array, actions), memory, {name: _array(extra) for name, extra in extras.items()}

    def memory_arrays(self, memory: nest.Tree) -> nest.Tree:
        return nest.map(_array, memory)

    def get_weights(self) -> Weights:
        """A copy of parameters and buffers, by their names in the network; floats of any width as float32."""
        return {name: _copy(tensor) for name, tensor in self.network.state_dict().items()}

    def set_weights(self, weights: Weights) -> None:
        """Copies the weights into the network.

        Raises:
            SpecError: a name or a shape differs from the network's; nothing was changed.
        """
        own = self.network.state_dict()
        _check(own, weights)
        with torch.no_grad():
            for name, tensor in own.items():
                _fill(tensor, weights[name])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return _readable(array).to(self.device, non_blocking=True)


def _readable(array: np.ndarray) -> Tensor:
    """A tensor over the array's memory; a copy where the array is read-only, which torch would warn of."""
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _fill(tensor: Tensor, array: np.ndarray) -> None:
    """Writes an array into a tensor; on a CPU by NumPy, which reads what came from a network without a copy."""
    if tensor.device.type == "cpu" and tensor.dtype is not torch.bfloat16:
        np.copyto(tensor.numpy(), array, casting="same_kind")
    else:
        tensor.copy_(_readable(array))


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _copy(tensor: Tensor) -> np.ndarray:
    """A copy on the host, in the order of its axes whatever the layout in memory."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format).numpy()


def _check(own: dict[str, Tensor], weights: Weights) -> None:
    for name in sorted(own.keys() | weights.keys()):
        shape = tuple(own[name].shape) if name in own else "no such weight"
        given = tuple(weights[name].shape) if name in weights else "no such weight"
        if shape != given:
            raise SpecError(
                f"Weight {name!r}: this network has {shape}, the given weights have {given}. "
                "Were they made by another network, or by other settings of this experiment?"
            )
