"""tinyverse: reinforcement learning on whatever machines you have.

tinyverse atari.py play -b 3      tinyverse atari.py train -b 10      tinyverse atari.py eval -n 5
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyverse.core.lazy import imported

if TYPE_CHECKING:
    from tinyverse.agents.agent import Agent, RandomAgent
    from tinyverse.agents.torch_agent import TorchAgent
    from tinyverse.algorithms.learner import Learner
    from tinyverse.api import load, run
    from tinyverse.core.batch import Batch
    from tinyverse.core.errors import TinyverseError
    from tinyverse.core.session import Session, SessionSpec
    from tinyverse.database.base import Database
    from tinyverse.database.memory import MemoryDatabase
    from tinyverse.experiment.experiment import Experiment

__version__ = "0.1.0"

_MODULES = {
    "Agent": "agents.agent", "Batch": "core.batch", "Database": "database.base", "Experiment": "experiment.experiment",
    "Learner": "algorithms.learner", "MemoryDatabase": "database.memory", "RandomAgent": "agents.agent",
    "Session": "core.session", "SessionSpec": "core.session", "TinyverseError": "core.errors",
    "TorchAgent": "agents.torch_agent", "load": "api", "run": "api",
}  # fmt: skip

__all__ = [
    "Agent", "Batch", "Database", "Experiment", "Learner", "MemoryDatabase", "RandomAgent", "Session", "SessionSpec",
    "TinyverseError", "TorchAgent", "__version__", "load", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `tinyverse --help` need not import torch."""
    return imported(__name__, name, _MODULES)
