"""Agents: policies that act in environments.

They are imported when first used, because `Agent` itself needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyverse.core.lazy import imported

if TYPE_CHECKING:
    from tinyverse.agents.agent import Agent, RandomAgent
    from tinyverse.agents.q_agent import QAgent
    from tinyverse.agents.torch_agent import TorchAgent

__all__ = ["Agent", "QAgent", "RandomAgent", "TorchAgent"]

_MODULES = {"Agent": "agent", "QAgent": "q_agent", "RandomAgent": "agent", "TorchAgent": "torch_agent"}


def __getattr__(name: str) -> Any:
    return imported(__name__, name, _MODULES)
