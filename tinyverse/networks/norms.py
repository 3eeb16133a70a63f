"""Normalisation between a layer and its activation, chosen by one word, so that every trunk offers the same choice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core.errors import SettingsError


def norm_layer(kind: str, features: int, *, image: bool = False) -> nn.Module:
    """A layer from [N, features], or from images [N, features, H, W], to the same shape.

    Args:
        kind: "none"; "layer": every row by its own mean and deviation (Ba et al. 2016; of images over channels and
            pixels); "batch": see `BatchNorm`.
    Raises:
        SettingsError: another word.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "layer":
        return nn.GroupNorm(1, features) if image else nn.LayerNorm(features)
    if kind == "batch":
        return BatchNorm(features)
    raise SettingsError(f"normalization={kind!r} is unknown. Use 'none', 'layer' or 'batch'.")


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) for a network that acts and learns in turn.

    Where gradients are recorded it uses the statistics of the batch, all rows of all games, and moves the running ones
    towards them; elsewhere (acting, targets, bootstrap values) it uses the running ones and changes nothing, so one row
    alone has the same outputs as among others. The running statistics are buffers and travel with the weights. Reset
    rows count too: their observations were really seen, each as an episode's last.

    Since learning does not compute quite what acting did, log π/μ is not exactly 0 for the newest weights.

    Args:
        features: C of [N, C] or [N, C, H, W].
        momentum: how far the running statistics move at each update.
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
        learning = torch.is_grad_enabled() and x.numel() > x.shape[1]  # a single number has no deviation
        return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, learning, self.momentum)
