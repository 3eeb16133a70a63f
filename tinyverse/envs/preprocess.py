"""PreprocessImage: crops, shrinks and greys images, because few networks want what a game draws for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from tinyverse.errors import ExperimentError


class PreprocessImage(gymnasium.ObservationWrapper):
    """Observations become [height, width] grey images, or [3, height, width] in colour.

    Args:
        env: its observations are [H, W], [H, W, 1] or [H, W, 3] uint8 images.
        crop: takes the image as the environment gives it, returns the part that matters: `lambda image: image[34:194]`.
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
        super().__init__(env)
        self._size, self._grayscale, self._crop, self._dtype = (width, height), grayscale, crop, np.dtype(dtype)
        if self._dtype != np.uint8 and self._dtype.kind != "f":
            raise ExperimentError(f"PreprocessImage gives uint8 or floats, not {self._dtype}.")
        shape = self.observation(_blank(env.observation_space)).shape
        self.observation_space = spaces.Box(0, 255 if self._dtype == np.uint8 else 1, shape, self._dtype.type)

    def observation(self, image: np.ndarray) -> np.ndarray:
        image = _image(self._crop(image))
        if self._grayscale and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        if not self._grayscale:
            image = np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), -1, 0))
        return image if self._dtype == np.uint8 else image.astype(self._dtype) / self._dtype.type(255)


def _blank(space: Any) -> np.ndarray:
    """A black image of the space."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        raise ExperimentError(f"PreprocessImage wants images, a Box of uint8 [H, W] or [H, W, channels]; got {space}.")
    return np.zeros(space.shape, np.uint8)


def _image(array: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3], contiguous as OpenCV wants it."""
    if array.size and array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ExperimentError(
            f"an image is [H, W], [H, W, 1] or [H, W, 3] and not empty; after crop it is {list(array.shape)}."
        )
    return np.ascontiguousarray(array)
