"""Agents: policies that act in environments.

They are imported when first used, because `Agent` itself needs no torch.
"""

from typing import TYPE_CHECKING

from tinyverse.core.lazy import importer

if TYPE_CHECKING:
    from tinyverse.agents.agent import Agent, RandomAgent
    from tinyverse.agents.q_agent import QAgent
    from tinyverse.agents.torch_agent import TorchAgent

__all__ = ["Agent", "QAgent", "RandomAgent", "TorchAgent"]

__getattr__ = importer(
    __name__, {"Agent": "agent", "QAgent": "q_agent", "RandomAgent": "agent", "TorchAgent": "torch_agent"}
)
