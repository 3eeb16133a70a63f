"""tinyverse: reinforcement learning on whatever machines you have.

tinyverse atari.py play -b 3      tinyverse atari.py train -b 10      tinyverse atari.py eval -n 5
"""

from typing import TYPE_CHECKING

from tinyverse.core.lazy import importer

if TYPE_CHECKING:
    from tinyverse.agents.agent import Agent, RandomAgent
    from tinyverse.agents.torch_agent import TorchAgent
    from tinyverse.algorithms.learner import Learner
    from tinyverse.api import load, run
    from tinyverse.core.batch import Batch
    from tinyverse.core.errors import (  # isort: skip
        CodecError, DatabaseError, DatabaseLost, ExperimentError, LeaseLost, NoWeights, NotANumber,
        RankLost, RunConflict, ServerError, SettingsError, SpecError, TinyverseError, WindowClosed,
    )  # fmt: skip
    from tinyverse.core.session import Session, SessionSpec
    from tinyverse.database.base import Database
    from tinyverse.database.memory import MemoryDatabase
    from tinyverse.experiment.experiment import Experiment

__version__ = "0.1.0"


__all__ = [
    "Agent", "Batch", "CodecError", "Database", "DatabaseError", "DatabaseLost", "Experiment", "ExperimentError",
    "Learner", "LeaseLost", "MemoryDatabase", "NoWeights", "NotANumber", "RandomAgent", "RankLost", "RunConflict",
    "ServerError", "Session", "SessionSpec", "SettingsError", "SpecError", "TinyverseError", "TorchAgent",
    "WindowClosed", "__version__", "load", "run",
]  # fmt: skip

__getattr__ = importer(__name__, {
    "Agent": "agents.agent", "Batch": "core.batch", "Database": "database.base", "Experiment": "experiment.experiment",
    "Learner": "algorithms.learner", "MemoryDatabase": "database.memory", "RandomAgent": "agents.agent",
    "Session": "core.session", "SessionSpec": "core.session", "TorchAgent": "agents.torch_agent", "load": "api", "run": "api",
    "CodecError": "core.errors", "DatabaseError": "core.errors", "DatabaseLost": "core.errors",
    "ExperimentError": "core.errors", "LeaseLost": "core.errors", "NoWeights": "core.errors",
    "NotANumber": "core.errors", "RankLost": "core.errors", "RunConflict": "core.errors",
    "ServerError": "core.errors", "SettingsError": "core.errors", "SpecError": "core.errors",
    "TinyverseError": "core.errors", "WindowClosed": "core.errors",
})  # fmt: skip
