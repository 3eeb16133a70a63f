"""tinyverse: reinforcement learning on whatever machines you have.

tinyverse atari.py play -b 3      tinyverse atari.py train -b 10      tinyverse atari.py eval -n 5
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyverse.agent import Agent, RandomAgent
    from tinyverse.batch import Batch
    from tinyverse.database import Database, MemoryDatabase
    from tinyverse.errors import TinyverseError
    from tinyverse.experiment import Experiment
    from tinyverse.learner import Learner
    from tinyverse.scripting import load, run
    from tinyverse.session import Session, SessionSpec
    from tinyverse.torch_agent import TorchAgent

__version__ = "0.1.0"

_HOMES = {
    "Agent": "agent", "RandomAgent": "agent", "Batch": "batch", "Database": "database", "MemoryDatabase": "database",
    "Experiment": "experiment", "Learner": "learner", "Session": "session", "SessionSpec": "session",
    "TinyverseError": "errors", "TorchAgent": "torch_agent", "load": "scripting", "run": "scripting",
}  # fmt: skip

__all__ = [
    "Agent", "Batch", "Database", "Experiment", "Learner", "MemoryDatabase", "RandomAgent", "Session", "SessionSpec",
    "TinyverseError", "TorchAgent", "__version__", "load", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `tinyverse --help` need not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tinyverse' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinyverse.{_HOMES[name]}"), name)
