"""Preprocessing: every step and what it refuses, single environments and vectors alike; rewards, shaped for learning only."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tinyverse.agents.agent import RandomAgent
from tinyverse.core.errors import ExperimentError
from tinyverse.envs import pool_of
from tinyverse.envs.wrappers import (
    Cast,
    ChannelsFirst,
    Crop,
    Divide,
    Flatten,
    Frames,
    Grey,
    PreprocessImage,
    Resize,
    Transform,
    preprocess,
    shape_rewards,
)
from tinyverse.experiment.experiment import Experiment
from tinyverse.player.evaluator import evaluate


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


# -- single steps -------------------------------------------------------------------------------------------------


class Counter(gymnasium.Env):
    """Observes [episode, step]; every episode has three steps, whose reward is 1, 2, 3."""

    observation_space = spaces.Box(0, 99, (2,), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0], np.uint8), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.array([self.episode, self.steps], np.uint8), float(self.steps), self.steps == 3, False, {}


@pytest.mark.parametrize(
    ("step", "picture", "expected"),
    [
        (Cast(np.float32), noise(4), noise(4).astype(np.float32)),
        (Crop(lambda image: image[1:, :2]), noise(4, 4), noise(4, 4)[1:, :2]),
        (Grey(), noise(4, 3, 1), noise(4, 3, 1)[..., 0]),
        (Grey(), noise(4, 3), noise(4, 3)),
        (ChannelsFirst(), noise(4, 5, 3), noise(4, 5, 3).transpose(2, 0, 1)),
        (ChannelsFirst(), noise(4, 5), noise(4, 5)[None]),
        (Resize(4, 5), noise(4, 5, 1), noise(4, 5, 1)),
        (Divide(4), noise(3), noise(3).astype(np.float32) / 4),
        (Flatten(), noise(2, 3, 3), noise(2, 3, 3).ravel()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Transform) else "",
)
def test_each_step(step: Transform, picture: np.ndarray, expected: np.ndarray) -> None:
    env = preprocess(Picture(picture), step)
    seen = env.reset()[0]
    np.testing.assert_array_equal(seen, expected)
    assert seen in env.observation_space and env.observation_space.dtype == expected.dtype


def test_bounds_pass_through_the_steps() -> None:
    space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([4.0, np.inf], np.float32))
    env = preprocess(Picture(noise(2), space), Divide(2), Frames(2), Flatten())
    np.testing.assert_array_equal(env.observation_space.low, [-1, 0, -1, 0])
    np.testing.assert_array_equal(env.observation_space.high, [2, np.inf, 2, np.inf])


def test_frames_begin_anew_with_every_episode() -> None:
    env = preprocess(Counter(), Frames(3))
    for episode in (1, 2):
        seen = env.reset()[0]
        assert seen.tolist() == [[0, 0], [0, 0], [episode, 0]] and seen in env.observation_space
        rows = [env.step(0)[0].tolist() for _ in range(3)]
        assert rows[0] == [[0, 0], [episode, 0], [episode, 1]]
        assert rows[2] == [[episode, 1], [episode, 2], [episode, 3]]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_vector_of_games_sees_what_single_games_do(mode: AutoresetMode) -> None:
    def steps() -> list[Transform]:
        return [Frames(2), Flatten(), Divide(2)]

    vector = pool_of(preprocess(SyncVectorEnv([Counter, Counter], autoreset_mode=mode), *steps()), 2)
    single = pool_of(lambda: preprocess(Counter(), *steps()), 2)
    assert vector.observation_space == single.observation_space
    np.testing.assert_array_equal(vector.reset(0), single.reset(0))
    for _ in range(3):  # whole episodes; then a DISABLED one counts its resets otherwise
        mine, theirs = vector.step(np.zeros(2, int)), single.step(np.zeros(2, int))
        np.testing.assert_array_equal(mine.observations, theirs.observations)
    begun = vector.step(np.zeros(2, int)).observations
    assert (begun[:, :2] == 0).all() and (begun[:, 3] == 0).all() and (begun[:, 2] >= 1).all()
    for _ in range(2):
        np.testing.assert_array_equal(vector.step(np.zeros(2, int)).observations[:, 2], begun[:, 2])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Flatten(), Grey()], r"step 2 of preprocessing, Grey\(\), got observations .*\(48,\).*wanted images"),
        ([Divide(2), Resize(2, 2)], "step 2 of .*Resize.*wanted images"),
        ([Divide(0)], "above 0"),
        ([Frames(0)], "1 or more"),
        ([Divide(0.1), Cast(np.int8)], "within -128 … 127"),
    ],
)
def test_steps_that_do_not_fit_are_refused(steps: list[Transform], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        preprocess(Picture(noise(4, 4, 3)), *steps)
    with pytest.raises(ExperimentError, match="a Box"):
        preprocess(Picture(noise(1), spaces.Discrete(3)), Flatten())


# -- rewards ------------------------------------------------------------------------------------------------------


def rewards_of(env: gymnasium.Env, episodes: int = 2) -> list[float]:
    found = []
    for _ in range(episodes):
        env.reset()
        found += [env.step(0)[1] for _ in range(3)]
    return found


def test_rewards_are_scaled_then_clipped() -> None:
    assert rewards_of(shape_rewards(Counter(), scale=0.5, clip=1.2)) == [0.5, 1.0, 1.2] * 2
    assert rewards_of(shape_rewards(Counter(), scale=-0.5, clip=1.2)) == [-0.5, -1.0, -1.2] * 2
    assert rewards_of(shape_rewards(Counter())) == rewards_of(Counter())


def test_running_normalisation_by_the_formula() -> None:
    found, sums, expected = rewards_of(shape_rewards(Counter(), normalize=0.5)), [], []
    for _ in range(2):
        total = 0.0
        for reward in (1.0, 2.0, 3.0):
            total = 0.5 * total + reward
            sums.append(total)
            expected.append(reward / (np.std(sums) if len(sums) > 1 else 1.0))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_a_vector_normalises_over_its_games_and_counts_no_reset(mode: AutoresetMode) -> None:
    env = shape_rewards(SyncVectorEnv([Counter, Counter], autoreset_mode=mode), normalize=0.5)
    env.reset(seed=0)
    sums, total = [], 0.0
    for t in range(11):
        if t % 4 == 3:
            if mode is AutoresetMode.DISABLED:
                env.reset(options={"reset_mask": np.ones(2, bool)})
            else:
                assert env.step(np.zeros(2, int))[1].tolist() == [0, 0]
            total = 0.0
            continue
        total = 0.5 * total + (t % 4 + 1)
        sums += [total, total]
        shaped = env.step(np.zeros(2, int))[1]
        np.testing.assert_allclose(shaped, (t % 4 + 1) / (np.std(sums) if t else 1.0), rtol=1e-6)


def test_evaluation_sees_the_games_own_reward() -> None:
    def make_env(evaluation: bool = False) -> gymnasium.Env:
        return Counter() if evaluation else shape_rewards(Counter(), scale=100.0)

    experiment = Experiment(
        make_env=make_env, make_agent=lambda observed, actions: RandomAgent(observed, actions), train_step=lambda *_: {}
    )
    assert evaluate(experiment, experiment.agent(), episodes=2, seed=0).mean == 6.0
    assert sum(rewards_of(experiment.env(), 1)) == 600.0
