"""Bounds: the whole numbers that a discrete space allows, and the one check that arrays keep to them.

An index that does not exist ends an update, on a GPU the process. A Box has no Bounds: environments leave theirs by a
rounding error, and a network takes any finite number.
"""

import dataclasses
import json
from typing import Any, Self

import numpy as np

from tinyverse.core.errors import SpecError


@dataclasses.dataclass(frozen=True, eq=False)
class Bounds:
    """The least and the greatest of each number of a space, as integers []  or [*shape]."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, space: Any) -> Self | None:
        """The bounds of a Discrete, MultiDiscrete or MultiBinary space, of Gymnasium or gym; None of any other."""
        counts = getattr(space, "nvec", None)
        if counts is None:
            if not hasattr(space, "n"):
                return None
            counts = space.n if space.shape == () else 2  # MultiBinary's n is its shape
        low = np.asarray(getattr(space, "start", 0))
        return cls(low, np.asarray(low + np.asarray(counts, dtype=np.int64) - 1))

    @classmethod
    def from_lists(cls, lists: Any, shape: tuple[int, ...]) -> Self:
        """Inverse of `lists`, for arrays [T, *shape]. Raises ValueError, TypeError or OverflowError where it is none."""
        low, high = lists
        bounds = cls(np.asarray(low), np.asarray(high))
        for array in (bounds.low, bounds.high):
            if array.dtype.kind not in "iu" or array.shape not in ((), shape):
                raise ValueError(f"no bounds of arrays {list(shape)}: {array.dtype}{list(array.shape)}")
        return bounds

    def lists(self) -> list[Any]:
        """[low, high] for JSON."""
        return [self.low.tolist(), self.high.tolist()]

    def check(self, array: np.ndarray, what: str) -> None:
        """Raises SpecError, which names the first number that is not allowed; the array's last axes are the space's."""
        outside = (array < self.low) | (array > self.high)
        if outside.any():
            raise SpecError(f"{what} holds {array[outside][0]}, which is not in its space ({self}).")

    def __str__(self) -> str:
        return " to ".join(json.dumps(bound) for bound in self.lists())
