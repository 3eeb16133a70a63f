"""Evaluator: known returns, every seat its quota, and a film that never costs an episode."""

from __future__ import annotations

import functools
import math

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tinyverse.agents.agent import Agent, RandomAgent
from tinyverse.experiment.experiment import Experiment
from tinyverse.player import evaluator
from tinyverse.player.evaluator import Evaluation, evaluate, evaluate_in_processes


class Corridor(gymnasium.Env):
    """An episode of `length` steps whose reward is the action; a picture of its step number if asked."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, length=3, render_mode=None, bonus=0.0):
        self.length, self.render_mode, self.bonus = length, render_mode, bonus
        self.observation_space = spaces.Box(0, 1000, (1,), np.float32)
        self.action_space = spaces.Discrete(5)
        self.now = 0
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.now = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.now += 1
        over = self.now == self.length
        return np.array([self.now], np.float32), float(action) + self.bonus, over, False, {}

    def render(self):
        return np.full((32, 32, 3), 10 * self.now, np.uint8)

    def close(self):
        self.closed = True


class Remembering(Agent):
    """Presses the number of steps it remembers; greedily, always 4."""

    def initial_state(self, n):
        return np.zeros(n, np.int64)

    def act(self, observations, state, is_first, greedy=False):
        state = np.where(is_first, 0, state)
        return (np.full_like(state, 4) if greedy else state % 5), state + 1, {}


def corridors(*lengths, **options):
    """An experiment whose seats have these lengths in turn."""
    made = []

    def make_env(evaluation=False, render_mode=None):
        made.append(Corridor(lengths[len(made) % len(lengths)], render_mode, bonus=0.0 if evaluation else 100.0))
        return made[-1]

    experiment = Experiment(make_env=make_env, make_agent=RandomAgent, **options)
    experiment.made = made
    return experiment


def test_returns_are_those_of_the_games():
    result = evaluate(corridors(4), Remembering(), episodes=5, at_once=2)
    assert result.returns == [0 + 1 + 2 + 3] * 5  # the state begins anew with every episode
    assert result.lengths == [4] * 5
    assert result.mean == 6
    assert result.standard_error == 0
    assert result.seconds > 0


def test_evaluation_reaches_make_env():
    assert evaluate(corridors(2), Remembering()).mean == 1  # training's bonus of 100 a step is not in it


def test_greedy_reaches_the_agent():
    assert evaluate(corridors(3), Remembering(), greedy=True).returns == [12.0]


@pytest.mark.parametrize(
    ("episodes", "at_once", "seats"), [(6, 2, [3, 3]), (7, 2, [4, 3]), (2, 8, [1, 1]), (1, 1, [1])]
)
def test_every_seat_plays_its_quota_however_short_its_games(episodes, at_once, seats):
    result = evaluate(corridors(2, 40), Remembering(), episodes=episodes, at_once=at_once)
    lengths = [length for seat, length in zip(seats, (2, 40), strict=False) for _ in range(seat)]
    assert result.lengths == lengths


def test_the_standard_error_is_that_of_the_mean():
    returns = [1.0, 4.0, 7.0, 0.0]
    mean = sum(returns) / 4
    naive = math.sqrt(sum((x - mean) ** 2 for x in returns) / 3) / 2
    evaluation = Evaluation(returns, [1, 2, 3, 4], version=7)
    assert evaluation.standard_error == pytest.approx(naive)
    assert str(evaluation) == f"mean return 3.00 ± {naive:.2f} over 4 episodes of 2 steps (version 7, sampled)"
    alone = Evaluation([2.0], [5])
    assert math.isnan(alone.standard_error)
    assert str(alone) == "mean return 2.00 over 1 episode of 5 steps (version -1, sampled)"


def test_each_game_is_told():
    told = []
    evaluate(
        corridors(2, 5), Remembering(), episodes=4, at_once=2, on_episode=lambda done, total: told.append((done, total))
    )
    assert [done for done, _ in told] == [1, 2, 3, 4]
    assert sorted(total for _, total in told) == [1, 1, 10, 10]


def test_a_game_without_end_is_cut_and_counted_once(monkeypatch):
    monkeypatch.setattr(evaluator, "MAX_STEPS", 50)
    result = evaluate(corridors(10**9), Remembering(), episodes=3, greedy=True)
    assert result.lengths == [50, 50, 50]
    assert result.returns == [200.0] * 3


def test_environments_are_closed_also_after_an_error():
    class Failing(Remembering):
        def act(self, observations, state, is_first, greedy=False):
            raise ZeroDivisionError

    experiment = corridors(3)
    with pytest.raises(ZeroDivisionError):
        evaluate(experiment, Failing(), episodes=2, at_once=2)
    assert len(experiment.made) == 2
    assert all(env.closed for env in experiment.made)


def test_a_native_vector_environment_will_do():
    def make_pool(num_envs):
        return gymnasium.vector.SyncVectorEnv(
            [lambda: Corridor(3)] * num_envs, autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP
        )

    result = evaluate(Experiment(make_pool=make_pool), Remembering(), episodes=4, at_once=2)
    assert result.returns == [3.0] * 4


# -- films ----------------------------------------------------------------------------------------------------------


def frames_of(path):
    film, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = film.read()
        if not good:
            return frames
        frames.append(frame)


@pytest.mark.parametrize(("short", "filmed"), [(0.2, 1), (0.3, 2)])  # seconds of 30 frames; an episode has 7
def test_the_first_game_is_filmed_and_the_next_if_it_is_short(tmp_path, monkeypatch, short, filmed):
    monkeypatch.setattr(evaluator, "SHORT_SECONDS", short)
    experiment = corridors(6)
    result = evaluate(experiment, Remembering(), episodes=4, at_once=2, video=tmp_path / "deep" / "episode.webm")
    assert (result.video, result.note) == (tmp_path / "deep" / "episode.webm", "")
    brightness = [frame.mean() for frame in frames_of(result.video)]
    assert len(brightness) == 7 * filmed  # from the first observation to the last
    assert np.abs(np.array(brightness) - 10 * np.tile(np.arange(7), filmed)).max() < 6
    assert [env.render_mode for env in experiment.made] == ["rgb_array", None]


class Picture(Corridor):
    """Observations are images."""

    def __init__(self, shape):
        super().__init__(4)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)

    def reset(self, **options):
        super().reset(**options)
        return np.zeros(self.observation_space.shape, np.uint8), {}

    def step(self, action):
        _, *rest = super().step(action)
        return np.full(self.observation_space.shape, 20 * self.now, np.uint8), *rest


@pytest.mark.parametrize("shape", [(36, 36), (36, 36, 1), (36, 36, 3), (4, 36, 36)])
def test_image_observations_are_filmed_where_nothing_is_rendered(tmp_path, shape):
    experiment = Experiment(make_env=lambda: Picture(shape), make_agent=RandomAgent)
    result = evaluate(experiment, Remembering(), video=tmp_path / "episode.webm")
    assert result.note == ""
    assert len(frames_of(result.video)) == 5


def test_without_pictures_there_is_a_note_and_no_file(tmp_path):
    experiment = Experiment(make_env=lambda evaluation: Corridor(3), make_agent=RandomAgent)
    result = evaluate(experiment, Remembering(), video=tmp_path / "episode.webm")
    assert result.video is None
    assert "no video" in result.note
    assert result.returns == [3.0]
    assert list(tmp_path.iterdir()) == []


class Unshown(Corridor):
    """Renders nothing a film can be made of: at once, or from the third frame on."""

    def __init__(self, what, render_mode=None):
        super().__init__(5, render_mode)
        self.what = what

    def render(self):
        if self.what == "raises":
            raise RuntimeError("no display")
        if self.what == "raises later" and self.now >= 2:
            raise RuntimeError("the display is gone")
        if self.what == "grows":
            return np.zeros((32 + self.now, 32, 3), np.uint8)
        return {"None": None, "floats": np.zeros((32, 32, 3))}.get(self.what, super().render())


@pytest.mark.parametrize("what", ["raises", "raises later", "grows", "None", "floats"])
def test_a_failing_renderer_is_a_note_and_the_games_are_played(tmp_path, what):
    experiment = Experiment(make_env=lambda evaluation, render_mode: Unshown(what, render_mode), make_agent=RandomAgent)
    result = evaluate(experiment, Remembering(), episodes=2, video=tmp_path / "episode.webm")
    assert result.returns == [10.0, 10.0]
    assert result.video is None
    assert result.note.startswith("no video: ")
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_cannot_be_written_is_a_note(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = evaluate(corridors(3), Remembering(), video=tmp_path / "file" / "episode.webm")
    assert result.returns == [3.0]
    assert result.video is None
    assert "no video" in result.note


def test_a_game_that_fails_leaves_no_half_film(tmp_path):
    class Tired(Remembering):
        def act(self, observations, state, is_first, greedy=False):
            if (state > 2).any():
                raise ZeroDivisionError
            return super().act(observations, state, is_first, greedy)

    with pytest.raises(ZeroDivisionError):
        evaluate(corridors(9), Tired(), video=tmp_path / "episode.webm")
    assert list(tmp_path.iterdir()) == []


# -- several processes ----------------------------------------------------------------------------------------------


class Weighted(Agent):
    """Presses what its weights say."""

    def __init__(self, *_):
        self.button = 0

    def act(self, observations, state, is_first, greedy=False):
        return np.full(len(is_first), self.button), state, {}

    def set_weights(self, weights):
        self.button = int(weights["button"])


def make_corridors(length):
    return Experiment(make_env=functools.partial(make_corridor, length), make_agent=Weighted)


def make_corridor(length, render_mode=None):
    return Corridor(length, render_mode)


@pytest.mark.xdist_group("joblib")  # whose processes import torch once, and are kept
@pytest.mark.parametrize(("episodes", "jobs"), [(5, 2), (1, 2)])
def test_processes_share_the_games(tmp_path, episodes, jobs):
    make = functools.partial(make_corridors, 3)
    weights = {"button": np.array(4)}
    result = evaluate_in_processes(
        make, weights, jobs=jobs, episodes=episodes, at_once=2, seed=5, video=tmp_path / "episode.webm"
    )
    assert result.returns == [12.0] * episodes
    assert result.lengths == [3] * episodes
    assert result.video == tmp_path / "episode.webm"
    assert len(frames_of(result.video)) == 4 * min(episodes, 2)  # all of the first seat
