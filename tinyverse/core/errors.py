"""Exceptions. All derive from TinyverseError; the message says what is wrong and how to fix it.

    TinyverseError
    ├── CodecError, SpecError, SettingsError, ExperimentError, ServerError
    ├── NoWeights, WindowClosed, NotANumber, RankLost
    └── DatabaseError
        └── DatabaseLost, LeaseLost, RunConflict

A user should only ever see an error of this tree. A traceback is a bug of tinyverse.
"""

from tinyverse.core.text import printable


class TinyverseError(Exception):
    """Raised when the user can fix the problem; the message says how."""


def _one_line(self: TinyverseError, message: str) -> None:
    """Such a message quotes what came from elsewhere: it must neither command a terminal nor forge lines of a log."""
    Exception.__init__(self, printable(message, 2000))


class CodecError(TinyverseError):
    """Raised when bytes do not follow their format. The reader allocates nothing before it has checked them."""

    __init__ = _one_line


class SpecError(TinyverseError):
    """Raised when names, shapes or dtypes differ from the run's session spec."""

    __init__ = _one_line


class SettingsError(TinyverseError):
    """Raised when options are wrong or would deadlock together."""


class ExperimentError(TinyverseError):
    """Raised when an experiment module, its environment or its agent cannot be used."""


class NoWeights(TinyverseError):
    """Raised when a run has no weights yet, neither in the database nor on disk."""


class WindowClosed(TinyverseError):
    """Raised when a human player has closed the window. The player drops the unfinished session."""


class ServerError(TinyverseError):
    """Raised when no database server could be found or started."""


class NotANumber(TinyverseError):
    """Raised when losses, gradients or weights are NaN or infinite. The trainer neither publishes nor saves them."""


class RankLost(TinyverseError):
    """Raised when another rank of this trainer is gone during a collective operation."""


class DatabaseError(TinyverseError):
    """Raised when the database refused a request."""


class DatabaseLost(DatabaseError):
    """Raised when the database cannot be reached; callers may retry."""


class LeaseLost(DatabaseError):
    """Raised when a trainer that lost its lease tries to publish."""


class RunConflict(DatabaseError):
    """Raised when a run's name is taken by another experiment or other settings."""
