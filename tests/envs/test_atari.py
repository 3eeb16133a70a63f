"""Atari: the rules are those that are stated, and one game alone equals the same game in a batch."""

import re
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from tinyverse.agents.agent import Agent
from tinyverse.core.errors import ExperimentError
from tinyverse.envs.atari import FRAME_SKIP, MAX_NUM_FRAMES, atari_env, atari_pool, rom_name
from tinyverse.envs.pool import VectorPool
from tinyverse.player.player import Player

ale_py = pytest.importorskip("ale_py")
GAMES = 2  # each emulator takes long to start, and to seed


def inner(pool: VectorPool) -> Any:
    """ale-py's own vector environment inside a pool."""
    return pool._env.unwrapped


def test_spaces_and_frames() -> None:
    pool = atari_pool("ALE/Pong-v5", GAMES)
    observations = pool.reset(seed=0)
    assert observations.shape == (GAMES, 84, 84) and observations.dtype == np.uint8
    assert pool.observation_space == atari_env("pong").observation_space
    assert pool.action_space == atari_env("pong").action_space and pool.action_space.n == 6
    assert atari_pool("pong", 1, full_action_space=True).action_space.n == 18


def test_a_step_is_four_frames_and_an_episode_ends_after_thirty_minutes() -> None:
    env = atari_env("pong")
    before = env.reset(seed=0)[1]["episode_frame_number"]
    assert env.step(0)[4]["episode_frame_number"] - before == FRAME_SKIP == 4
    assert MAX_NUM_FRAMES == 30 * 60 * 60


# 38 is no multiple of the frame skip: such an episode ends in the middle of a step
@pytest.mark.parametrize(
    ("game", "max_num_frames", "steps"),
    [("pong", MAX_NUM_FRAMES, 150), ("breakout", MAX_NUM_FRAMES, 250), ("pong", 38, 40), ("ms_pacman", 40, 40)],
)
def test_one_game_alone_equals_the_game_in_a_batch(game: str, max_num_frames: int, steps: int) -> None:
    """Observations, rewards and ends of every row, given the same actions and as many frames before the first."""
    pool = atari_pool(game, GAMES, max_num_frames=max_num_frames)
    envs = [atari_env(game, max_num_frames=max_num_frames) for _ in range(GAMES)]
    vector: Any = pool._env  # the pool as it is, before it forgets the infos
    rng, ended, ends, paid = np.random.default_rng(0), np.ones(GAMES, bool), 0, 0.0
    observations, info = vector.reset(seed=5)
    actions = np.zeros(GAMES, int)
    rewards, terminated, truncated = np.zeros(GAMES), np.zeros(GAMES, bool), np.zeros(GAMES, bool)
    for step in range(steps):
        for row, env in enumerate(envs):
            if ended[row]:
                frames = int(info["episode_frame_number"][row])
                seed = row if step == 0 else None
                alone: Any = (env.reset(seed=seed, options={"noops": frames})[0], 0.0, False, False)
            else:
                alone = env.step(actions[row])[:4]
            np.testing.assert_array_equal(alone[0], observations[row])
            assert alone[1:] == (rewards[row], terminated[row], truncated[row])
        ended = terminated | truncated
        ends, paid = ends + ended.sum(), paid + abs(rewards).sum()
        actions = rng.integers(pool.action_space.n, size=GAMES)
        vector.send(actions)
        observations, rewards, terminated, truncated, info = vector.recv()
    assert ends > 0 if game == "breakout" or max_num_frames < 100 else paid > 0


def test_the_step_after_a_time_limit_is_a_reset() -> None:
    pool = atari_pool("breakout", GAMES, max_num_frames=40)
    kept = [pool.reset(seed=0)]
    copies = [kept[0].copy()]
    for step in range(1, 23):
        observations, rewards, terminated, truncated, _ = pool.step(np.full(GAMES, 1))
        kept.append(observations)
        copies.append(observations.copy())
        assert not terminated.any()
        assert (truncated == (step in (10, 21))).all(), "10 steps of 4 frames, then one row for the reset"
        assert step != 11 or not rewards.any()
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True)), "ale-py reuses its arrays"
    # of the new episode: the bricks are whole and the score is gone, as at the very first row
    assert np.abs(copies[11].astype(int) - copies[0]).mean() < np.abs(copies[10].astype(int) - copies[0]).mean()


def test_the_row_of_a_reset_shows_a_fresh_emulator() -> None:
    pool = atari_pool("pong", 1, max_num_frames=24, noop_max=1)  # every episode begins with the same frame
    first = pool.reset(seed=0).copy()
    rows = [pool.step(np.array([2])) for _ in range(15)]
    np.testing.assert_array_equal(rows[6].observations, first)
    np.testing.assert_array_equal(rows[13].observations, first)
    assert not np.array_equal(rows[5].observations, first)
    assert rows[5].truncated.all() and not rows[6].truncated.any() and rows[6].rewards == 0


def test_rewards_are_raw_and_an_episode_is_a_whole_game() -> None:
    pool = atari_pool("ms_pacman", 2)
    pool.reset(seed=0)
    rng, lives, paid = np.random.default_rng(0), [], []
    vector = inner(pool)
    for _ in range(700):
        _, rewards, terminated, _, info = vector.step(rng.integers(9, size=2))
        paid.append(rewards.max())
        lives.append(info["lives"].copy())
        if terminated.any():
            break
    assert max(paid) >= 10, "a dot is worth 10"
    assert terminated.any() and (lives[-1][terminated] == 0).all()
    assert min(row.min() for row in lives[:-1]) < lives[0].max(), "lives were lost before the end"


def test_buttons_do_not_stick_unless_asked() -> None:
    envs = {probability: atari_env("pong", repeat_action_probability=probability) for probability in (0.0, 0.5)}

    def frames(probability: float, seed: int) -> np.ndarray:
        envs[probability].reset(seed=seed, options={"noops": 3})
        return np.stack([envs[probability].step(2 + step % 2)[0] for step in range(30)])

    np.testing.assert_array_equal(frames(0.0, 1), frames(0.0, 2))
    first = frames(0.5, 1)
    assert not np.array_equal(first, frames(0.5, 2))
    np.testing.assert_array_equal(first, frames(0.5, 1))


def test_noops_differ_from_episode_to_episode_and_stay_below_their_limit() -> None:
    env = atari_env("pong", noop_max=6)
    env.reset(seed=0)
    seen = {env.reset()[1]["episode_frame_number"] for _ in range(60)}
    assert seen == {1, 2, 3, 4, 5}  # 0 no-ops still leave the frame of FIRE


def test_rendering() -> None:
    env = atari_env("pong", evaluation=True)
    env.reset(seed=0)
    picture = env.render()
    assert picture is not None and picture.shape == (210, 160, 3) and picture.dtype == np.uint8 and picture.any()
    assert env.render_mode == "rgb_array" and env.metadata["render_fps"] == 15
    silent = atari_env("pong")
    silent.reset(seed=0)
    assert silent.render() is None


def test_ale_pys_mode_is_read_from_the_environment_and_not_from_the_dict_it_shares() -> None:
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv("pong", 2, autoreset_mode="SameStep")
    atari_pool("pong", 1)
    assert VectorEnv.metadata["autoreset_mode"].value == "NextStep"
    with pytest.raises(ExperimentError, match="SAME_STEP"):
        VectorPool(env)


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "PongNoFrameskip-v4", "PongDeterministic-v0", "Pong-v4", "pong"])
def test_rom_name(env_id: str) -> None:
    assert rom_name(env_id) == "pong"


def test_rom_name_of_everything_gymnasium_knows() -> None:
    gymnasium.register_envs(ale_py)
    games = {name: spec.kwargs["game"] for name, spec in gymnasium.registry.items() if "game" in spec.kwargs}
    assert len(games) > 100
    assert {name: rom_name(name) for name in games} == games


def test_an_unknown_game_names_those_that_are_close() -> None:
    with pytest.raises(ExperimentError, match=r"no Atari game 'Brekout-v5'.* Did you mean breakout"):
        rom_name("Brekout-v5")
    with pytest.raises(ExperimentError, match=re.escape('spelled like "ALE/Pong-v5"')):
        atari_pool("CartPole-v1", 2)


def test_without_ale_py_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ExperimentError, match=re.escape('pip install "tinyverse[atari]"')):
        atari_pool("pong", 1)


def test_people_play_with_arrows_and_space():
    keys = atari_env("breakout").get_keys_to_action()
    assert keys == {(): 0, ("space",): 1, ("right",): 2, ("left",): 3}
    every = atari_env("pong", full_action_space=True).get_keys_to_action()
    assert len(every) == 18 and ("up", "left", "space") in every


class Buttons(Agent):
    """Presses what its seed says, whatever it sees."""

    def __init__(self, buttons: int) -> None:
        self.buttons = buttons

    def seed(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def act(self, observations: Any, memory: Any, first: np.ndarray, greedy: bool = False) -> tuple[Any, Any, Any]:
        return self.rng.integers(0, self.buttons, len(first)), memory, {}

    def get_weights(self) -> dict[str, np.ndarray]:
        return {}

    def set_weights(self, weights: Any) -> None:
        pass


def test_a_life_is_an_episode_and_the_game_goes_on() -> None:
    """The same buttons, with lives as episodes and without: the same frames and whole games, and more ends."""
    with_lives, without = (
        Player(Buttons(4), atari_pool("breakout", 2, episodic_life=lives), 600, seed=1).play()
        for lives in (True, False)
    )
    assert np.array_equal(with_lives.observations, without.observations)
    assert with_lives.episodes == without.episodes and sum(map(len, without.episodes)) >= 2
    ends, games = with_lives.terminated, without.terminated
    assert ends[games].all() and 4.5 * games.sum() < ends.sum() < 5.5 * games.sum() + 10  # of 5 lives
    lost = np.flatnonzero(ends[:, 0] & ~games[:, 0])
    assert not with_lives.valid[lost + 1, 0].any() and without.valid[lost + 1, 0].all()
    rows = with_lives.valid & without.valid
    assert np.array_equal(with_lives.rewards[rows], without.rewards[rows]) and not with_lives.rewards[~rows].any()


@pytest.mark.parametrize("episodic_life", [True, False])
def test_the_step_after_a_lost_life_serves_the_ball(episodic_life: bool) -> None:
    """Whoever never presses FIRE loses a Breakout game of 5 lives all the same, in a batch and alone."""
    player = Player(Buttons(1), atari_pool("breakout", 2, episodic_life=episodic_life), 600, seed=1)
    assert sum(map(len, player.play().episodes)) >= 2
    env, steps, over = atari_env("breakout"), 0, False
    env.reset(seed=1)
    while not over:
        over, steps = env.step(0)[2], steps + 1
    assert steps < 600
