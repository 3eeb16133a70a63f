"""Trunks: from one observation to an embedding, row by row and without memory.

A trunk is any `nn.Module` from [N, …] to [N, D]. One that makes its layers only when it knows what comes in has
`build(shape) -> D`, where `shape` is that of one observation; it is called once, by the network it is put into.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.errors import SettingsError

Layer = TypeVar("Layer", bound=nn.Module)

HIDDEN_GAIN = math.sqrt(2)  # keeps the variance of activations through ReLU (Saxe et al. 2014; He et al. 2015)


def orthogonal(layer: Layer, gain: float = HIDDEN_GAIN) -> Layer:
    """Orthogonal weights times `gain` and zero biases, in place; returns the layer."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter, gain)
        elif "bias" in name:
            nn.init.zeros_(parameter)
    return layer


class Identity(nn.Module):
    """The observation itself as numbers, flattened to [N, D]; bytes become 0 … 1."""

    def build(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return x.reshape(len(x), -1)


class MLP(Identity):
    """Fully connected layers with an activation after each. Synonyms: feed-forward network, dense layers.

    >>> MLP(64, 64).build((4,))
    64
    """

    def __init__(self, *sizes: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        if not sizes:
            raise SettingsError("MLP() has no layers. Give their sizes, as in MLP(64, 64), or use Identity().")
        self.sizes, self.activation = sizes, activation

    def build(self, shape: tuple[int, ...]) -> int:
        inputs = (math.prod(shape), *self.sizes[:-1])
        pairs = [(orthogonal(nn.Linear(*ends)), self.activation()) for ends in zip(inputs, self.sizes, strict=True)]
        self.layers = nn.Sequential(*(part for pair in pairs for part in pair))
        return self.sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.layers[0]
        return self.layers(super().forward(x).to(first.weight.dtype))


class NatureConv(nn.Module):
    """Three convolutions and one dense layer (Mnih et al. 2015, Nature, "Model architecture").

    Takes images [N, C, H, W] or [N, H, W] of bytes, 36 × 36 pixels or more, and divides by 255 itself. Bytes are exact
    in every float type, and the division is done on the first layer's few weights, so pixels are touched once.

    Args:
        size: features of the dense layer.
        layer_norm: normalise these before their activation (Ba et al. 2016): a step of the optimiser can no longer push
            all of them one way.
        center: subtract each image's mean, so that a constant background does not drown what moves.
    """

    convolutions: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride

    def __init__(self, size: int = 512, *, layer_norm: bool = False, center: bool = False) -> None:
        super().__init__()
        self.size, self.center = size, center
        self.norm = nn.LayerNorm(size) if layer_norm else nn.Identity()

    def build(self, shape: tuple[int, ...]) -> int:
        if len(shape) not in (2, 3) or min(shape[-2:]) < 36:
            raise SettingsError(
                f"{type(self).__name__} wants (channels, height, width) or (height, width) of 36 pixels or more"
            )
        channels, height, width = shape[0] if len(shape) == 3 else 1, *shape[-2:]
        self.layers = nn.ModuleList()
        for wider, kernel, stride in self.convolutions:
            self.layers.append(orthogonal(nn.Conv2d(channels, wider, kernel, stride)))
            channels, height, width = wider, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.dense = orthogonal(nn.Linear(channels * height * width, self.size))
        # 1.4 to 2 times as fast on CPUs, and what tensor cores want
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.size

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self.layers[0]
        x = _channels_last(x.unsqueeze(1) if x.ndim == 3 else x)
        x = x.to(_compute_dtype(first.weight))
        if self.center:
            x = x - x.mean((1, 2, 3), keepdim=True)
        x = functional.conv2d(x, first.weight / 255, first.bias, first.stride)
        for layer in self.layers[1:]:
            x = layer(functional.relu(x, inplace=True))
        x = functional.relu(x, inplace=True).permute(0, 2, 3, 1).flatten(1)  # a view: this is the order in memory
        return functional.relu(self.norm(self.dense(x)), inplace=True)


class SmallConv(NatureConv):
    """The two convolutions of the first deep Q-network (Mnih et al. 2013, section 4.1): a third of the arithmetic."""

    convolutions = ((16, 8, 4), (32, 4, 2))

    def __init__(self, size: int = 256, *, layer_norm: bool = False, center: bool = False) -> None:
        super().__init__(size, layer_norm=layer_norm, center=center)


def _channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] laid out as [N, H, W, C]. Stacking does it twice as fast as `contiguous` where C is small."""
    return torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)


def _compute_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
