"""Spaces: checks observations against an environment's spaces, and converts actions to them.

`spec_of` turns a space into a tree with an `Array` (shape and dtype) at each leaf. Errors name the leaf that differs.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from tinyverse.core import nest
from tinyverse.core.bounds import Bounds
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.text import article

LARGEST = float(np.finfo(np.float32).max)  # reward


class ActionAdapter:
    """Converts actions [B, …] to the shape, dtype and bounds of a space."""

    def __init__(self, space: Any, num_envs: int) -> None:
        self._spaces = nest.of_space(space, lambda leaf: leaf)
        self._bounds = nest.of_space(space, Bounds.of)
        self._num_envs = num_envs
        spec_of(space, ())

    def arrays(self, actions: nest.Tree) -> nest.Tree:
        """Returns one array [B, …] per leaf, as a VectorEnv takes them.

        Raises:
            SpecError: the actions differ from the space in structure, shape or kind of dtype, or are not in it.
        """
        try:
            return nest.map(self._leaf, self._spaces, self._bounds, actions)
        except (LookupError, TypeError, ValueError) as error:
            raise SpecError(
                f"the agent's actions are not built like the action space {self._spaces}: {error!r}."
            ) from None

    def columns(self, actions: nest.Tree) -> nest.Tree:
        """Returns one sequence of B per leaf, whose elements single environments take: int for Discrete."""

        def column(space: Any, leaf: np.ndarray) -> Any:
            return leaf.tolist() if hasattr(space, "n") and space.shape == () else leaf

        return nest.map(column, self._spaces, self.arrays(actions))

    def _leaf(self, space: Any, bounds: Bounds | None, actions: Any) -> np.ndarray:
        array, shape = np.asarray(actions), (self._num_envs, *space.shape)
        if array.shape != shape or not _can_hold(space.dtype, array.dtype):
            got, wanted = Array(array.shape, array.dtype), Array(shape, space.dtype)
            raise SpecError(f"the agent's actions are {got}, the environments want {wanted}.")
        if bounds is not None:
            bounds.check(array, "the agent's actions")
        elif hasattr(space, "low") and hasattr(space, "high"):
            array = np.clip(array, space.low, space.high)
        return array.astype(space.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape and dtype of one leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def spec_of(space: Any, batch: tuple[int, ...]) -> nest.Tree:
    """Returns the `Array`s of a space, with the `batch` axes in front.

    Raises:
        ExperimentError: a leaf of the space has no fixed shape or no numbers.
    """

    def leaf(part: Any) -> Array:
        dtype = getattr(part, "dtype", None)
        if getattr(part, "shape", None) is None or dtype is None or np.dtype(dtype).kind not in "biuf":
            raise ExperimentError(
                f"{part} holds no arrays of numbers. Wrap the environment so that its spaces are Box, Discrete, Dict …"
            )
        return Array(batch + tuple(part.shape), np.dtype(dtype))

    return nest.of_space(space, leaf)


def blank(spec: nest.Tree, num_envs: int) -> nest.Tree:
    """Returns zeros [B, …] for the arrays […] of `spec`."""
    return nest.map(lambda leaf: np.zeros((num_envs, *leaf.shape), leaf.dtype), spec)


def fit(spec: nest.Tree, observation: nest.Tree) -> nest.Tree:
    """Returns the observation as arrays.

    Raises:
        SpecError: they differ from `spec`.
    """
    try:
        if isinstance(spec, Array):  # the common case, without the overhead of a tree
            return _fit_leaf(spec, observation)
        return nest.map(_fit_leaf, spec, observation)
    except (LookupError, TypeError, ValueError):
        raise SpecError(
            f"the environment's observation is {article(observation)} that is not built like its observation_space: "
            "wanted arrays, for a Dict a dict with its keys, for a Tuple a tuple of its length."
        ) from None


def _fit_leaf(wanted: Array, part: Any) -> np.ndarray:
    array = np.asarray(part)
    if array.shape == wanted.shape and array.dtype == wanted.dtype:
        return array
    if array.shape == wanted.shape and _can_hold(wanted.dtype, array.dtype):
        fitting = array.astype(wanted.dtype)  # such as float64 where float32 is declared
        if wanted.dtype.kind not in "iu" or (fitting == array).all():
            return fitting
        raise SpecError(f"the environment's observation holds a number that {wanted.dtype} cannot hold.")
    got = Array(array.shape, array.dtype)
    raise SpecError(f"the environment's observation is {got}, its observation_space is {wanted}. Change one of them.")


def _can_hold(wanted: np.dtype, got: np.dtype) -> bool:
    """Tells whether numbers of one dtype may become another's: integers of any width, whose values are then checked."""
    return np.can_cast(got, wanted, "same_kind") or (got.kind in "iu" and wanted.kind in "iu")


def fit_reward(shape: tuple[int, ...], reward: Any) -> Any:
    """Returns the reward. Raises SpecError where it is no number, or none that float32 can hold."""
    if isinstance(reward, (float, int)):
        sound = abs(reward) <= LARGEST
    else:
        reward = np.asarray(reward)
        if reward.shape != shape or reward.dtype.kind not in "biuf":
            got = Array(reward.shape, reward.dtype)
            raise SpecError(f"the environment's reward is {got}, wanted one number. Return a float.")
        sound = bool((abs(reward) <= LARGEST).all())
    if not sound:
        raise not_a_number("reward")
    return reward


def check_finite(array: np.ndarray, what: str) -> None:
    """Raises SpecError where a float is NaN or infinite: a dot product needs one pass and no temporary array."""
    flat = array.reshape(-1)
    if not math.isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
        raise not_a_number(what)


def not_a_number(what: str) -> SpecError:
    return SpecError(
        f"the environment's {what} is not a number (NaN or infinite). A network that sees one never recovers."
    )


class Checks:
    """What observations of a space must keep to beside shape and dtype: finite floats, choices that there are."""

    def __init__(self, space: Any) -> None:
        self._bounds = nest.leaves(nest.of_space(space, Bounds.of))

    def check(self, observations: nest.Tree) -> None:
        """Raises SpecError for observations [B, …] or [A, …] of which one breaks the space."""
        leaves = [observations] if isinstance(observations, np.ndarray) else nest.leaves(observations)
        for leaf, bounds in zip(leaves, self._bounds, strict=True):
            if leaf.dtype.kind == "f":
                check_finite(leaf, "observation")
            elif bounds is not None:
                bounds.check(leaf, "the environment's observation")
