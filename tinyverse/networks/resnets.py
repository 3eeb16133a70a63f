"""Residual trunks: from images to an embedding by deep networks.

The last convolution of each of the L residual branches begins smaller by 1/√L, so that the sum over all branches keeps
its size even without normalisation (Zhang et al. 2019, Fixup, section 2).
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from tinyverse.core.errors import SettingsError
from tinyverse.networks.convs import PixelConv, channels_last, flat, image_shape
from tinyverse.networks.trunks import HIDDEN_GAIN, norm_layer, orthogonal


class ImpalaResNet(nn.Module):
    """The deep network of IMPALA (Espeholt et al. 2018, figure 3 right, without its LSTM).

    Each section is a 3 × 3 convolution, a 3 × 3 max-pool of stride 2 and two residual blocks (ReLU, convolution, ReLU,
    convolution). After the sections come ReLU, a dense layer, ReLU.

    Args:
        size: features of the dense layer.
        width: factor for all channels; Cobbe et al. 2020 (Procgen, section 4) use 2 and 4 too.
        channels: of the sections at width 1.
        normalization: "none" (the paper), "layer" or "batch": before every ReLU, see `norm_layer`.
    """

    def __init__(
        self, size: int = 256, *, width: int = 1, channels: Sequence[int] = (16, 32, 32), normalization: str = "none"
    ) -> None:
        super().__init__()
        self.size, self.channels, self.normalization = size, [width * wide for wide in channels], normalization
        self.dense_norm = norm_layer(normalization, size)

    def build(self, shape: tuple[int, ...]) -> int:
        channels, height, width = image_shape(self, shape, smallest=2 ** len(self.channels))
        self.sections, blocks = nn.Sequential(), 2 * len(self.channels)
        for wider in self.channels:
            conv = (nn.Conv2d if len(self.sections) else PixelConv)(channels, wider, 3, padding=1)
            self.sections.append(orthogonal(conv, 1.0))
            self.sections.append(nn.MaxPool2d(3, 2, padding=1))
            for _ in range(2):
                self.sections.append(PreActivation(wider, wider, blocks=blocks, normalization=self.normalization))
            channels, height, width = wider, (height + 1) // 2, (width + 1) // 2
        self.norm = norm_layer(self.normalization, channels, image=True)
        self.dense = orthogonal(nn.Linear(channels * height * width, self.size))
        channels_last(self)
        return self.size

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.sections(images)))
        return functional.relu(self.dense_norm(self.dense(flat(x))), inplace=True)


class ResNet18(nn.Module):
    """The residual network of 18 layers without its classifier; its features are means over all places of 512 channels.

    Its stem is for small images: a 3 × 3 convolution of stride 2 instead of 7 × 7, then the 3 × 3 max-pool. 84 × 84
    becomes 21 × 21, and 3 × 3 at the end.

    Args:
        version: 1 adds, then activates (He et al. 2015, figure 2 and table 1); 2 activates first, so that nothing
            changes the sum (He et al. 2016, figure 4e).
        width: channels of the first of four stages; each further stage has twice as many.
        normalization: "layer", "batch" (the papers) or "none"; see `norm_layer`.
    """

    def __init__(self, *, version: int = 2, width: int = 64, normalization: str = "layer") -> None:
        super().__init__()
        if version not in (1, 2):
            raise SettingsError(f"ResNet18(version={version}) is unknown. Use 1 (He et al. 2015) or 2 (2016).")
        self.version, self.width, self.normalization = version, width, normalization
        norm_layer(normalization, 1)  # refuses an unknown name at once

    def build(self, shape: tuple[int, ...]) -> int:
        channels, _, _ = image_shape(self, shape, smallest=16)
        block = PostActivation if self.version == 1 else PreActivation
        self.stem = orthogonal(PixelConv(channels, self.width, 3, 2, 1))
        self.blocks, channels = nn.Sequential(), self.width
        for stage in range(4):
            wider = self.width << stage
            for stride in (min(stage, 1) + 1, 1):
                self.blocks.append(block(channels, wider, stride, blocks=8, normalization=self.normalization))
                channels = wider
        self.norm = norm_layer(self.normalization, self.width if self.version == 1 else channels, image=True)
        channels_last(self)
        return channels

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        if self.version == 1:
            x = functional.relu(self.norm(x), inplace=True)
        x = self.blocks(functional.max_pool2d(x, 3, 2, padding=1))
        if self.version == 2:
            x = functional.relu(self.norm(x), inplace=True)
        return x.mean((2, 3))


class PostActivation(nn.Module):
    """x → ReLU(shortcut(x) + norm(conv(ReLU(norm(conv(x)))))): He et al. 2015, figure 2.

    Where channels or size change, the shortcut is a normalised 1 × 1 convolution (their option B), elsewhere x.
    `blocks` is the number of such blocks in the network.
    """

    def __init__(self, channels: int, wider: int, stride: int = 1, *, blocks: int, normalization: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = _branch(channels, wider, stride, blocks)
        self.norm1, self.norm2 = (norm_layer(normalization, wider, image=True) for _ in range(2))
        self.shortcut: nn.Module = nn.Identity()
        if (channels, stride) != (wider, 1):
            projection = orthogonal(nn.Conv2d(channels, wider, 1, stride), 1.0)
            self.shortcut = nn.Sequential(projection, norm_layer(normalization, wider, image=True))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.shortcut(x) + self.norm2(self.conv2(inner)), inplace=True)


class PreActivation(nn.Module):
    """x → shortcut + conv(ReLU(norm(conv(ReLU(norm(x)))))): He et al. 2016, figure 4e, and IMPALA's without norms.

    Where channels or size change, the shortcut is a 1 × 1 convolution of ReLU(norm(x)), elsewhere x. `blocks` is the
    number of such blocks in the network.
    """

    def __init__(self, channels: int, wider: int, stride: int = 1, *, blocks: int, normalization: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = _branch(channels, wider, stride, blocks)
        self.norm1, self.norm2 = (norm_layer(normalization, size, image=True) for size in (channels, wider))
        changes = (channels, stride) != (wider, 1)
        self.projection = orthogonal(nn.Conv2d(channels, wider, 1, stride), 1.0) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        inner = functional.relu(self.norm2(self.conv1(active)), inplace=True)
        return (x if self.projection is None else self.projection(active)) + self.conv2(inner)


def _branch(channels: int, wider: int, stride: int, blocks: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    first, last = nn.Conv2d(channels, wider, 3, stride, 1), nn.Conv2d(wider, wider, 3, padding=1)
    return orthogonal(first), orthogonal(last, HIDDEN_GAIN / math.sqrt(blocks))
