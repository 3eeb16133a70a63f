"""Networks as three rooms in a row, trunk → body → head, so that each can be exchanged alone."""

from tinyverse.networks.bodies import LSTM, FeedForward, Stage, Window
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
from tinyverse.networks.trunks import MLP, Identity, NatureConv, SmallConv

__all__ = [
    "LSTM",
    "MLP",
    "Categorical",
    "CategoricalHead",
    "DiagonalGaussian",
    "Distribution",
    "FeedForward",
    "GaussianHead",
    "Head",
    "Identity",
    "Joint",
    "ModularNetwork",
    "MultiCategorical",
    "MultiCategoricalHead",
    "NatureConv",
    "Outputs",
    "SmallConv",
    "Stage",
    "ValueHead",
    "Window",
]
