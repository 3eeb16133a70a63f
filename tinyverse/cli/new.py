"""Beginning: the verb `new`. Writes an experiment around a small environment of one's own, and a test for it."""

from __future__ import annotations

from pathlib import Path

from tinyverse.core.errors import SettingsError

EXPERIMENT = '''\
"""A game of your own, and how to learn it.

    tinyverse {name}.py check          does everything fit together?
    tinyverse {name}.py local -n 300   play and learn in one process, without a server
    tinyverse {name}.py run            with a server, a player and a trainer; Ctrl-C ends them
    tinyverse {name}.py eval -n 20     whole games with what was learned, and a film in records/
    tinyverse {name}.py play --human   you play, in a window, and it learns from you
    python -m pytest test_{name}.py
"""

import gymnasium as gym
import numpy as np

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import A2C
from tinyverse.networks import MLP, ModularNetwork


class Game(gym.Env):
    """A marker on a line is to be brought to the middle, soon. Put your own game here.

    What it must have: two spaces, and `reset` and `step` with exactly these results (gymnasium.farama.org).
    """

    STEPS = 40  # of an episode, at most
    metadata = {{"render_modes": ["rgb_array"], "render_fps": 5}}  # for films and `play --human` only

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)  # the place
        self.action_space = gym.spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # makes self.np_random, from which all chance should come
        self.place, self.steps = self.np_random.uniform(-1, 1), 0
        return self._seen(), {{}}

    def step(self, action):
        self.place = float(np.clip(self.place + 0.1 * (int(action) - 1), -2, 2))
        self.steps += 1
        terminated = abs(self.place) < 0.1  # the game is over: nothing comes after
        truncated = self.steps == self.STEPS and not terminated  # only the clock says so: learning looks beyond it
        reward = float(terminated) - 0.05  # sums of about 1 are learned well; each step costs a little
        return self._seen(), reward, terminated, truncated, {{}}

    def render(self):  # a picture, 400 pixels wide: the middle is white, the marker blue
        picture = np.full((40, 400, 3), 200, np.uint8)
        x = 200 + int(95 * self.place)
        picture[:, 190:210], picture[10:30, x - 5 : x + 5] = 255, (0, 0, 255)
        return picture

    def _seen(self):
        return np.array([self.place], np.float32)


def make_experiment(learning_rate=3e-3, hidden=64):
    """The arguments are the settings: tinyverse {name}.py local -o learning_rate=1e-3"""

    def make_env(evaluation=False, render_mode=None):  # evaluation: leave out what you add to the reward for learning
        return Game(render_mode)

    def make_agent(observation_space, action_space):  # from observations to actions; runs in every player
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=MLP(hidden, hidden)))

    def make_learner(agent):  # from sessions to better weights; runs in the trainer only
        return A2C(agent, learning_rate=learning_rate, optimizer="adam")

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=20,  # steps in a session
        games=16,  # that a player steps at once
        batch=16,  # sessions in an update
        publish_every=1,  # updates between two publications of weights
        keys={{"left": 0, "": 1, "right": 2}},  # for `play --human`: what they mean, "" being none
    )
'''

TEST = '''\
"""That the game keeps Gymnasium's rules, and that something is learned of it."""

from gymnasium.utils.env_checker import check_env
from {name} import Game, make_experiment

import tinyverse


def test_the_game_keeps_the_rules():
    check_env(Game(), skip_render_check=True)


def test_the_same_seed_is_the_same_game():
    one, two = Game(), Game()
    assert (one.reset(seed=3)[0] == two.reset(seed=3)[0]).all()


def test_the_experiment_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its runs/ go there
    curve = tinyverse.run(make_experiment, players=0, updates=150, seed=1)
    assert curve.returns[-1] > 0.5  # the best possible is about 0.75; random actions stay below 0
'''


def do_new(path: Path) -> tuple[Path, Path]:
    """Writes the experiment `path` and its test beside it; returns both paths.

    Raises:
        SettingsError: the name is none that Python can import, or a file of that name is there.
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise SettingsError(f"{path}: give a name that Python can import, such as my_game.py.")
    test = path.with_name(f"test_{path.name}")
    for file in (path, test):
        if file.exists():
            raise SettingsError(f"{file} is there already. Choose another name, or move it away.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(EXPERIMENT.format(name=path.stem), encoding="utf-8")
    test.write_text(TEST.format(name=path.stem), encoding="utf-8")
    return path, test
