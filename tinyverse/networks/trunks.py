"""Trunks: from one observation to an embedding, row by row and without a state. Trunks for images are in `convs`.

A trunk is any `nn.Module` from [N, …] to [N, D]. A trunk that makes its layers later has `build(shape) -> D`, where
`shape` is that of one observation. The network calls it once.
"""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core.errors import SettingsError

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


def norm_layer(kind: str, features: int, *, image: bool = False) -> nn.Module:
    """Returns a layer from [N, features], or from images [N, features, H, W], to the same shape.

    Args:
        kind: "none"; "layer": each row by its own mean and standard deviation (Ba et al. 2016; for images over channels
            and pixels); "batch": see `BatchNorm`.
    Raises:
        SettingsError: `kind` is none of these.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return nn.GroupNorm(1, features) if image else nn.LayerNorm(features)
    if kind == "batch":
        return BatchNorm(features)
    raise SettingsError(f"normalization={kind!r} is unknown. Use 'none', 'layer' or 'batch'.")


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) for a network that both acts and learns.

    Where gradients are recorded, it uses the statistics of the batch (all rows of all environments) and moves the
    running statistics towards them. Elsewhere (acting, targets, bootstrap values) it uses the running statistics and
    changes nothing, so a row's outputs do not depend on the other rows. The running statistics are buffers and travel
    with the weights. Reset rows count too, because their observations are real.

    Learning and acting therefore compute slightly different outputs: log π/μ is not exactly 0 for the newest weights.

    Args:
        features: C of [N, C] or [N, C, H, W].
        momentum: how far the running statistics move at each update, 0 … 1.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        learning = torch.is_grad_enabled() and x.numel() > x.shape[1]  # one row per feature has no deviation
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, learning, self.momentum)
