"""Networks: trunk → body → heads. Each part can be exchanged on its own."""

from tinyverse.networks.attention import Attention
from tinyverse.networks.bodies import FeedForward, Stack, Stage, Window
from tinyverse.networks.convs import FourConv, NatureConv, SmallConv
from tinyverse.networks.heads import (
    Categorical,
    CategoricalHead,
    DiagonalGaussian,
    Distribution,
    GaussianHead,
    Head,
    Joint,
    MultiCategorical,
    MultiCategoricalHead,
    ValueHead,
)
from tinyverse.networks.modular import ModularNetwork, Outputs
from tinyverse.networks.normalization import Normalized
from tinyverse.networks.recurrent import GRU, LSTM
from tinyverse.networks.resnets import ImpalaResNet, ResNet18
from tinyverse.networks.trunks import MLP, BatchNorm, Identity

__all__ = [
    "GRU", "LSTM", "MLP", "Attention", "BatchNorm", "Categorical", "CategoricalHead", "DiagonalGaussian", "Distribution",
    "FeedForward", "FourConv", "GaussianHead", "Head", "Identity", "ImpalaResNet", "Joint", "ModularNetwork", "MultiCategorical",
    "MultiCategoricalHead", "NatureConv", "Normalized", "Outputs", "ResNet18", "SmallConv", "Stack", "Stage", "ValueHead", "Window",
]  # fmt: skip
