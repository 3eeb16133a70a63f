"""Normalisation layers between a layer and its activation. Every trunk offers the same choice by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core.errors import SettingsError


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
