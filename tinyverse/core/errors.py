"""Every way this package says no, as one tree.

    TinyverseError          a sentence for a person: what was got, what was wanted, what to do
    ├── CodecError          bytes that are not what they claim to be
    ├── SpecError           a session that does not look like this run's sessions
    ├── SettingsError       options that are wrong, or that cannot work together
    ├── ExperimentError     the experiment module cannot be used as it stands
    ├── NoWeights           nothing was learned in this run yet
    ├── WindowClosed        a person who plays has closed the window
    ├── ServerError         no database server could be found or started
    ├── NotANumber          a trainer has learned something that is no number
    ├── RankLost            another process of the same trainer is gone
    └── DatabaseError       the database answered no
        ├── DatabaseLost    it did not answer at all; trying again may help
        ├── LeaseLost       another trainer publishes for this run now
        └── RunConflict     another experiment, or other settings, live under this run name

A traceback that reaches a user is a bug of ours; an error of this tree is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class TinyverseError(Exception):
    """Something a person can mend; the message says how."""


class CodecError(TinyverseError):
    """Raised when bytes are not what they claim to be. Nothing was allocated on their word."""


class SpecError(TinyverseError):
    """Raised when names, shapes or dtypes differ from what the run agreed on."""


class SettingsError(TinyverseError):
    """Raised when options are wrong or would deadlock together."""


class ExperimentError(TinyverseError):
    """Raised when an experiment module, its environment or its agent cannot be used."""


class NoWeights(TinyverseError):
    """Raised when a run has no weights yet, neither in the database nor on disk."""


class WindowClosed(TinyverseError):
    """Raised where a person's next action is wanted, but they have left; what they had not finished is not pushed."""


class ServerError(TinyverseError):
    """Raised when no database server could be found or started."""


class NotANumber(TinyverseError):
    """Raised when losses, gradients or weights are NaN or infinite; nothing of it was published or saved."""


class RankLost(TinyverseError):
    """Raised when another rank of this trainer is gone, in the middle of what all do together."""


class DatabaseError(TinyverseError):
    """Raised when the database refused a request."""


class DatabaseLost(DatabaseError):
    """Raised when the database cannot be reached; callers may retry."""


class LeaseLost(DatabaseError):
    """Raised when a trainer that lost its lease tries to publish."""


class RunConflict(DatabaseError):
    """Raised when a run's name is taken by another experiment or other settings."""
