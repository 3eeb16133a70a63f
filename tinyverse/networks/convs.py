"""Convolutional trunks: from images to an embedding.

Images are [N, C, H, W] or [N, H, W]. uint8 images are divided by 255 inside; others are taken as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core import distributed
from tinyverse.core.errors import SettingsError
from tinyverse.networks.trunks import norm_layer, orthogonal


class PixelConv(nn.Conv2d):
    """The first convolution of a trunk, which takes images as the environment gives them.

    Bytes are exact in every float type. The division by 255 is applied to the few weights instead of the many pixels.

    Args:
        center: (C, H, W) of the images, to subtract their `Background`; None: do not.
    """

    def __init__(self, *arguments: Any, center: tuple[int, int, int] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.background = Background(*center) if center else None

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight / 255 if images.dtype == torch.uint8 else self.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        x = _channels_last(images.unsqueeze(1) if images.ndim == 3 else images).to(dtype)
        if self.background is not None:
            x = self.background(x)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Background(nn.Module):
    """Subtracts each pixel's running mean, which is the static background.

    A ball has a few pixels, a wall thousands. With the wall, features hardly differ between screens, so an optimiser
    step moves the policy everywhere at once and it settles on one action before it has noticed the ball.

    As in `normalization.Normalized`, the mean is updated where gradients are recorded, by the images of all ranks, and
    an image is centred by the mean before it. The mean is a buffer and travels with the weights.

    Args:
        channels, height, width: of an image.
        slowest: lowest rate of the running mean, so that it follows pictures that change as play improves.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, channels: int, height: int, width: int, slowest: float = 1e-3) -> None:
        super().__init__()
        self.slowest = slowest
        self.register_buffer("mean", torch.zeros(height, width, channels))  # the images' layout in memory
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - self.mean.to(x.dtype).permute(2, 0, 1)
        if self.training and torch.is_grad_enabled():
            self.count += 1
            some = x.detach()[::4].permute(0, 2, 3, 1)  # a quarter of the images gives a mean that is accurate enough
            batch = distributed.mean(some.mean(0, dtype=torch.float32)).to(self.mean)
            self.mean.lerp_(batch, (1 / self.count).clamp(min=self.slowest))
        return centered


class NatureConv(nn.Module):
    """Three convolutions and one dense layer (Mnih et al. 2015, Nature, "Model architecture").

    Args:
        size: features of the dense layer.
        normalization: "none", "layer" or "batch": of these features before their activation, see `norm_layer`. An
            optimiser step can then not push all of them in one direction.
        center: subtract each pixel's running mean, see `Background`.
    """

    convolutions: tuple[tuple[int, int, int], ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride

    def __init__(self, size: int = 512, *, normalization: str = "none", center: bool = False) -> None:
        super().__init__()
        self.size, self.center = size, center
        self.norm = norm_layer(normalization, size)

    def build(self, shape: tuple[int, ...]) -> int:
        image = channels, height, width = image_shape(self, shape, smallest=36)
        center = image if self.center else None
        self.layers = nn.ModuleList()
        for wider, kernel, stride in self.convolutions:
            convolution = (channels, wider, kernel, stride)
            layer = nn.Conv2d(*convolution) if self.layers else PixelConv(*convolution, center=center)
            self.layers.append(orthogonal(layer))
            channels, height, width = wider, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.dense = orthogonal(nn.Linear(channels * height * width, self.size))
        channels_last(self)
        return self.size

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = functional.relu(layer(x), inplace=True)
        return functional.relu(self.norm(self.dense(flat(x))), inplace=True)


class SmallConv(NatureConv):
    """The two convolutions of the first deep Q-network (Mnih et al. 2013, section 4.1), a third of the arithmetic."""

    convolutions = ((16, 8, 4), (32, 4, 2))

    def __init__(self, size: int = 256, *, normalization: str = "none", center: bool = False) -> None:
        super().__init__(size, normalization=normalization, center=center)


class FourConv(nn.Module):
    """adept's network: four convolutions of stride 2 with a ReLU after each, flattened, without a dense layer.

    The first has a kernel of 7 × 7, the others of 3 × 3; all pad by 1. With 32 channels, an image of 84 × 84 becomes
    32 × 5 × 5 = 800 features.

    Args:
        channels: of every convolution.
        normalization: "none", "layer" or "batch", before each activation; see `norm_layer`.
        center: subtract each pixel's running mean, see `Background`.
    """

    def __init__(self, channels: int = 32, *, normalization: str = "none", center: bool = False) -> None:
        super().__init__()
        self.channels, self.center = channels, center
        self.norms = nn.ModuleList(norm_layer(normalization, channels, image=True) for _ in range(4))

    def build(self, shape: tuple[int, ...]) -> int:
        image = channels, *sides = image_shape(self, shape, smallest=16)
        pixels = PixelConv(channels, self.channels, 7, 2, 1, center=image if self.center else None)
        others = [nn.Conv2d(self.channels, self.channels, 3, 2, 1) for _ in range(3)]
        self.layers = nn.ModuleList(orthogonal(conv) for conv in (pixels, *others))
        channels_last(self)
        height, width = ((side - 5) // 2 + 1 for side in sides)
        for _ in others:
            height, width = (height + 1) // 2, (width + 1) // 2
        return self.channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = functional.relu(norm(layer(x)), inplace=True)
        return flat(x)


def image_shape(trunk: nn.Module, shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Returns (channels, height, width) of images that a trunk gets with or without a channel axis.

    Raises:
        SettingsError: these are no images, or their sides are below `smallest` pixels.
    """
    if len(shape) not in (2, 3) or min(shape[-2:]) < smallest:
        raise SettingsError(
            f"{type(trunk).__name__} wants (channels, height, width) or (height, width) of {smallest} pixels or more, "
            f"these are {list(shape)}. Where channels come last, wrap the environment: tinyverse.envs.wrappers.ChannelsFirst."
        )
    return shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1]


def channels_last(trunk: nn.Module) -> None:
    """Stores weights so that images use the layout [N, H, W, C]: 1.4 to 2 times as fast on CPUs, and for tensor cores."""
    trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def flat(x: Tensor) -> Tensor:
    """Flattens images to [N, D] in their order in memory, without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] in the layout [N, H, W, C]. For small C, stacking is twice as fast as `contiguous`."""
    return torch.stack(images.unbind(1), -1).permute(0, 3, 1, 2)
