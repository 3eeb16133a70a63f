"""PreprocessImage: sizes, greys, crops, and refuses what is no image."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tinyverse.envs.preprocess import PreprocessImage
from tinyverse.errors import ExperimentError


class Picture(gymnasium.Env):
    """Shows one picture."""

    action_space = spaces.Discrete(2)

    def __init__(self, picture: np.ndarray, space: Any = None) -> None:
        self.picture = picture
        self.observation_space = space or spaces.Box(0, 255, picture.shape, np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.picture, {}

    def step(self, action: Any) -> Any:
        return self.picture, 0.0, False, False, {}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)


@pytest.mark.parametrize("shape", [(210, 160), (210, 160, 1), (210, 160, 3)])
@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_space_holds_what_is_observed(shape: tuple[int, ...], grayscale: bool, dtype: Any) -> None:
    env = PreprocessImage(Picture(noise(*shape)), height=42, width=36, grayscale=grayscale, dtype=dtype)
    channels = () if grayscale else (3,) if shape[2:] == (3,) else (1,)
    assert env.observation_space.shape == (*channels, 42, 36) and env.observation_space.dtype == dtype
    first, after = env.reset()[0], env.step(0)[0]
    assert first in env.observation_space
    np.testing.assert_array_equal(first, after)


def test_resizing_averages_areas() -> None:
    picture = noise(8, 12)
    blocks = picture.reshape(4, 2, 4, 3).astype(float).mean(axis=(1, 3))
    seen = PreprocessImage(Picture(picture), height=4, width=4).reset()[0]
    assert np.abs(seen - blocks).max() <= 0.5 + 1e-6


def test_grey_is_the_luma_of_the_colours() -> None:
    picture = noise(6, 5, 3)
    luma = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    seen = PreprocessImage(Picture(picture), height=6, width=5).reset()[0]
    assert np.abs(seen - luma).max() <= 1


def test_colours_come_channel_first_and_in_order() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:] = 10, 20, 30
    seen = PreprocessImage(Picture(picture), height=2, width=2, grayscale=False).reset()[0]
    np.testing.assert_array_equal(seen, np.broadcast_to([[[10]], [[20]], [[30]]], (3, 2, 2)))
    assert seen.flags.c_contiguous


def test_crop_comes_first() -> None:
    picture = np.zeros((10, 10), np.uint8)
    picture[2:4, 5:9] = 200
    seen = PreprocessImage(Picture(picture), height=3, width=3, crop=lambda image: image[2:4, 5:9]).reset()[0]
    assert (seen == 200).all()


def test_floats_are_between_zero_and_one() -> None:
    seen = PreprocessImage(Picture(np.full((4, 4), 51, np.uint8)), dtype=np.float32).reset()[0]
    np.testing.assert_allclose(seen, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (4,)),
        spaces.Box(0, 1, (8, 8), np.float32),
        spaces.Box(0, 255, (8, 8, 7), np.uint8),
        spaces.Box(0, 255, (2, 8, 8, 3), np.uint8),
        spaces.Discrete(3),
        spaces.Dict(image=spaces.Box(0, 255, (8, 8), np.uint8)),
    ],
)
def test_what_is_no_image_is_refused(space: Any) -> None:
    with pytest.raises(ExperimentError, match="image"):
        PreprocessImage(Picture(noise(8, 8), space))


def test_a_crop_that_leaves_nothing_and_a_dtype_that_holds_nothing_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"after crop it is \[0, 8\]"):
        PreprocessImage(Picture(noise(8, 8)), crop=lambda image: image[20:])
    with pytest.raises(ExperimentError, match="int64"):
        PreprocessImage(Picture(noise(8, 8)), dtype=np.int64)
