"""Wrappers: preprocess observations and shape rewards, in small steps that check their input.

    env = preprocess(env, Grey(), Resize(84, 84), Divide(255), Flatten())
    env = env if evaluation else shape_rewards(env, scale=0.1, clip=1.0)

Both take a single environment or a Gymnasium vector environment. Some steps are better done on the trainer's device:
use `Window` in the network instead of `Frames` (sessions are k times smaller). NatureConv divides by 255 itself, and
the statistics of `RewardNormalizer` in a learner are saved with the run.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.utils import RunningMeanStd

from tinyverse.core.errors import ExperimentError


class Transform:
    """One step from array to array. It must be monotonic, so that bounds can be transformed like any array."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define __call__()")

    def refuses(self, space: spaces.Box) -> str:
        """Returns which observations it wants instead of these; "" if it takes them."""
        return ""

    def bounds(self, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest and the highest array that can come out."""
        return self(space.low), self(space.high)

    def reset(self) -> None:
        """Prepares for a new episode."""


@dataclasses.dataclass
class Cast(Transform):
    """Converts to another dtype. Integers must be able to hold the bounds."""

    dtype: Any

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.dtype)

    def refuses(self, space: spaces.Box) -> str:
        if np.dtype(self.dtype).kind == "f":
            return ""
        limits = np.iinfo(self.dtype)
        fits = np.all(space.low >= limits.min) and np.all(space.high <= limits.max)
        return "" if fits else f"bounds within {limits.min} … {limits.max}"


@dataclasses.dataclass
class Crop(Transform):
    """Cuts out a part: `Crop(lambda image: image[34:194])`."""

    part: Callable[[np.ndarray], np.ndarray]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return self.part(array)

    def refuses(self, space: spaces.Box) -> str:
        left = self.part(space.low)
        return "" if left.size else f"that something is left; after crop it is {list(left.shape)}"


class _ImageTransform(Transform):
    def refuses(self, space: spaces.Box) -> str:
        fits = space.dtype == np.uint8 and (len(space.shape) == 2 or space.shape[2:] in ((1,), (3,)))
        return "" if fits else "images, a Box of uint8 [H, W], [H, W, 1] or [H, W, 3]"


@dataclasses.dataclass
class Grey(_ImageTransform):
    """Converts [H, W, 3] to [H, W] by the luma of ITU-R BT.601. Images of one channel only lose their last axis."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        if array.ndim == 2:
            return array
        if array.shape[2] == 1:
            return array[:, :, 0]
        return cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY)


@dataclasses.dataclass
class Resize(_ImageTransform):
    """Resizes images; downscaling averages areas."""

    height: int
    width: int

    def __call__(self, array: np.ndarray) -> np.ndarray:
        image = np.ascontiguousarray(array)
        resized = cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return resized.reshape(self.height, self.width, *array.shape[2:])


@dataclasses.dataclass
class ChannelsFirst(_ImageTransform):
    """Converts [H, W, C] to [C, H, W], as convolutions take it, and [H, W] to [1, H, W]."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(np.atleast_3d(array), -1, 0))


@dataclasses.dataclass
class Divide(Transform):
    """Converts to floats and divides by a number above 0."""

    by: float
    dtype: Any = np.float32

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.astype(self.dtype) / np.dtype(self.dtype).type(self.by)

    def refuses(self, space: spaces.Box) -> str:
        return "" if self.by > 0 else "a number above 0 to divide by"


@dataclasses.dataclass
class Frames(Transform):
    """Stacks the newest `k` observations to [k, …], newest last, with zeros before the episode's beginning."""

    k: int
    _past: np.ndarray | None = dataclasses.field(default=None, init=False, repr=False)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        if self._past is None:
            self._past = np.zeros((self.k, *array.shape), array.dtype)
        self._past = np.concatenate([self._past[1:], array[None]])
        return self._past

    def refuses(self, space: spaces.Box) -> str:
        return "" if self.k > 0 else "k of 1 or more"

    def bounds(self, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
        low, high = (np.stack([bound] * self.k) for bound in (space.low, space.high))
        return np.minimum(low, 0), np.maximum(high, 0)

    def reset(self) -> None:
        self._past = None


@dataclasses.dataclass
class Flatten(Transform):
    """Flattens any shape to [D]."""

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(-1)


def preprocess(env: Any, *steps: Transform) -> Any:
    """Returns the environment with every observation transformed by `steps`, in order.

    Args:
        env: a gymnasium.Env or a VectorEnv whose observations are a Box.
    Raises:
        ExperimentError: a step cannot take the output of the step before; the message names both.
    """
    return (_PreprocessVector if isinstance(env, VectorEnv) else Preprocess)(env, *steps)


class _Pipeline:
    """The steps of one environment, with their state, and the space after them."""

    def __init__(self, space: Any, steps: Sequence[Transform]) -> None:
        self.steps = copy.deepcopy(steps)
        for number, step in enumerate(self.steps, 1):
            wanted = step.refuses(space) if isinstance(space, spaces.Box) else "numbers or an image, a Box"
            if wanted:
                raise ExperimentError(
                    f"step {number} of preprocessing, {step}, got observations {space}, wanted {wanted}."
                )
            low, high = step.bounds(space)
            space = spaces.Box(low, high, dtype=low.dtype.type)
        self.space = space

    def __call__(self, array: np.ndarray, begins: bool) -> np.ndarray:
        for step in self.steps:
            if begins:
                step.reset()
            array = step(array)
        return array


class Preprocess(gymnasium.ObservationWrapper):
    """A single environment with transformed observations; see `preprocess`."""

    def __init__(self, env: gymnasium.Env, *steps: Transform) -> None:
        super().__init__(env)
        self._pipeline, self._begins = _Pipeline(env.observation_space, steps), True
        self.observation_space = self._pipeline.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._begins = True
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        begins, self._begins = self._begins, False
        return self._pipeline(np.asarray(observation), begins)


class PreprocessImage(Preprocess):
    """Converts images to [height, width] grey or [3, height, width] colour: the usual steps in one wrapper.

    Args:
        env: its observations are [H, W], [H, W, 1] or [H, W, 3] uint8 images.
        crop: takes the original image and returns a part of it: `lambda image: image[34:194]`.
        dtype: np.uint8 keeps 0 … 255; a float dtype gives 0 … 1.
    Raises:
        ExperimentError: the observation is no such image, or nothing is left of it after `crop`.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        height: int = 64,
        width: int = 64,
        grayscale: bool = True,
        crop: Callable[[np.ndarray], np.ndarray] = lambda image: image,
        dtype: Any = np.uint8,
    ) -> None:
        if np.dtype(dtype) != np.uint8 and np.dtype(dtype).kind != "f":
            raise ExperimentError(f"PreprocessImage gives uint8 or floats, not {np.dtype(dtype)}.")
        steps = [Crop(crop), *([Grey()] if grayscale else []), Resize(height, width)]
        steps += [] if grayscale else [ChannelsFirst()]
        super().__init__(env, *steps, *([] if np.dtype(dtype) == np.uint8 else [Divide(255, dtype)]))


class _PreprocessVector(VectorWrapper):
    """A vector environment with transformed observations, whose resets are NEXT_STEP or DISABLED."""

    def __init__(self, env: VectorEnv, *steps: Transform) -> None:
        super().__init__(env)
        self._pipelines = [_Pipeline(env.single_observation_space, steps) for _ in range(env.num_envs)]
        self.single_observation_space = self._pipelines[0].space
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._begins = np.ones(env.num_envs, bool)
        self._seen = np.zeros((env.num_envs, *self._pipelines[0].space.shape), self._pipelines[0].space.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observations, info = self.env.reset(seed=seed, options=options)
        which = np.asarray((options or {}).get("reset_mask", np.ones(self.env.num_envs, bool)))
        self._begins |= which
        return self._observe(observations, which), info

    def step(self, actions: Any) -> tuple[Any, ...]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        observations = self._observe(observations, np.ones(self.env.num_envs, bool))
        self._begins = np.asarray(terminated) | np.asarray(truncated)
        return observations, rewards, terminated, truncated, info

    def _observe(self, observations: np.ndarray, which: np.ndarray) -> np.ndarray:
        for index in np.flatnonzero(which):
            self._seen[index] = self._pipelines[index](observations[index], bool(self._begins[index]))
            self._begins[index] = False
        return self._seen.copy()


def shape_rewards(env: Any, *, normalize: float | None = None, scale: float = 1.0, clip: float | None = None) -> Any:
    """Returns the environment with rewards normalised by their running standard deviation, scaled, and clipped.

    Use it for learning only: `make_env(evaluation=True)` should keep the original rewards. `play/return` counts shaped
    ones.

    Args:
        env: a gymnasium.Env or a VectorEnv.
        normalize: γ; divides by the standard deviation of all discounted sums Σ γ^k r_{t−k} so far (Engstrom et al.
            2020, section 3); None: do not. Each player has its own statistics, which end with it. `RewardNormalizer` in
            a learner has one set, which is saved.
        scale: factor.
        clip: largest absolute value; None: no limit.
    """
    kind, num_envs = (_ShapedVector, env.num_envs) if isinstance(env, VectorEnv) else (_ShapedEnv, 1)
    return kind(env, num_envs, normalize, scale, clip)


class _Shaped:
    """Shapes the rewards of n environments. The row after an end is a reset and is not counted."""

    env: Any

    def __init__(self, env: Any, n: int, discount: float | None, scale: float, clip: float | None) -> None:
        super().__init__(env)  # type: ignore[call-arg]  # a wrapper of Gymnasium
        self._discount, self._scale, self._clip = discount, scale, np.inf if clip is None else clip
        self._sums, self._resetting = np.zeros(n), np.zeros(n, bool)
        self._statistics = RunningMeanStd(epsilon=0.0)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        begins = (options or {}).get("reset_mask", True)  # some environments of a vector, or all
        self._sums[begins], self._resetting[begins] = 0.0, False
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, ...]:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        shaped = self._shape(np.atleast_1d(rewards).astype(float))
        self._resetting = np.atleast_1d(np.logical_or(terminated, truncated))
        return observations, shaped if np.ndim(rewards) else float(shaped[0]), terminated, truncated, info

    def _shape(self, rewards: np.ndarray) -> np.ndarray:
        if self._discount is not None:
            self._sums = np.where(self._resetting, 0.0, self._discount * self._sums + rewards)
            counted = self._sums[~self._resetting]
            if counted.size:
                self._statistics.update(counted)
            variance = self._statistics.var
            rewards = rewards / np.sqrt(variance if variance > 1e-24 else 1.0)
        return np.clip(self._scale * rewards, -self._clip, self._clip)


class _ShapedEnv(_Shaped, gymnasium.Wrapper):
    """One environment."""


class _ShapedVector(_Shaped, VectorWrapper):
    """A vector environment, whose resets are NEXT_STEP or DISABLED."""
