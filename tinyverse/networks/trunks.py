"""Trunks: from one observation to an embedding, row by row and without a state. Trunks for images are in `convs`.

A trunk is any `nn.Module` from [N, …] to [N, D]. A trunk that makes its layers later has `build(shape) -> D`, where
`shape` is that of one observation. The network calls it once.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyverse.core.errors import SettingsError
from tinyverse.networks.norms import norm_layer

Layer = TypeVar("Layer", bound=nn.Module)

HIDDEN_GAIN = math.sqrt(2)  # keeps the variance of activations across ReLU (Saxe et al. 2014; He et al. 2015)


def orthogonal(layer: Layer, gain: float = HIDDEN_GAIN) -> Layer:
    """Initialises weights to orthogonal ones times `gain` and biases to 0, in place; returns the layer."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim > 1:
            nn.init.orthogonal_(parameter, gain)
        elif "bias" in name:
            nn.init.zeros_(parameter)
    return layer


class Identity(nn.Module):
    """Flattens observations to floats [N, D]; uint8 becomes 0 … 1."""

    def build(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        return x.reshape(x.shape[0], -1)  # an export to ONNX treats len() as a constant


class MLP(Identity):
    """Fully connected layers with an activation after each. Synonyms: feed-forward network, dense or linear layers.

    Args:
        sizes: features of each layer.
        activation: the module after each layer.
        normalization: "none", "layer" or "batch", before each activation; see `norm_layer`.
    Raises:
        SettingsError: there are no sizes, or `normalization` is unknown.

    >>> MLP(64, 64).build((4,))
    64
    """

    def __init__(self, *sizes: int, activation: type[nn.Module] = nn.ReLU, normalization: str = "none") -> None:
        super().__init__()
        if not sizes:
            raise SettingsError("MLP() has no layers. Give their sizes, as in MLP(64, 64), or use Identity().")
        self.sizes, self.activation, self.normalization = sizes, activation, normalization
        norm_layer(normalization, 1)  # refuses an unknown name at once

    def build(self, shape: tuple[int, ...]) -> int:
        self.layers, inputs = nn.Sequential(), math.prod(shape)
        for size in self.sizes:
            self.layers.append(orthogonal(nn.Linear(inputs, size)))
            if self.normalization != "none":
                self.layers.append(norm_layer(self.normalization, size))
            self.layers.append(self.activation())
            inputs = size
        return inputs

    def forward(self, x: Tensor) -> Tensor:
        layers, x = self.layers, super().forward(x)
        first: Any = layers[0]
        return layers(x.to(first.weight.dtype))
