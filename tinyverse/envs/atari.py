"""Atari by one set of rules: in batches for playing and single for watching, with equal pixels.

Papers differ in these rules, so here they are: rewards are raw. An episode is a whole game by default. Actions are not
sticky. An observation is one grey frame (the agent's recurrent state holds earlier frames). One step is 4 frames. The
step after a lost life presses FIRE instead of the chosen action, in games that have it, because some wait for it
forever.
"""

import difflib
import re
from pathlib import Path
from typing import Any, cast

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from tinyverse.core.errors import ExperimentError
from tinyverse.envs.pool import VectorPool

FRAME_SKIP = 4  # emulator frames per agent step
FRAMES_PER_SECOND = 60  # of the emulator
MAX_NUM_FRAMES = 108_000  # 30 minutes, after which an episode is truncated; frames before the first row do not count
NOOP_MAX = 30  # an episode begins with 0 to NOOP_MAX - 1 frames, the first of them FIRE if the game has it
HEIGHT = WIDTH = 84


def atari_pool(
    env_id: str,
    num_envs: int,
    *,
    num_threads: int = 1,
    repeat_action_probability: float = 0.0,
    max_num_frames: int = MAX_NUM_FRAMES,
    noop_max: int = NOOP_MAX,
    full_action_space: bool = False,
    episodic_life: bool = False,
) -> VectorPool:
    """Returns `num_envs` Atari games on ale-py's own vector environment; observations are [B, 84, 84] uint8.

    Args:
        env_id: as `rom_name` takes it. Its version sets nothing (in Gymnasium `-v5` would mean stickiness 0.25).
        num_threads: of the emulator; with more, it steps a batch in parallel.
        repeat_action_probability: stickiness (Machado et al. 2018 use 0.25).
        max_num_frames: emulator frames after which an episode is truncated.
        noop_max: upper limit (exclusive) of the frames before an episode's first action.
        full_action_space: all 18 actions instead of those that the game uses.
        episodic_life: an episode is a life, for learning, so that losing a life costs all future reward (Mnih et al.
            2015). The game goes on, and reported returns are of whole games.
    Raises:
        ExperimentError: there is no such game, or ale-py is not installed.
    """
    name = rom_name(env_id)
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(
        name,
        num_envs,
        num_threads=num_threads,
        repeat_action_probability=repeat_action_probability,
        max_num_frames_per_episode=max_num_frames,
        full_action_space=full_action_space,
        noop_max=noop_max,
        use_fire_reset=True,
        frameskip=FRAME_SKIP,
        maxpool=True,
        img_height=HEIGHT,
        img_width=WIDTH,
        grayscale=True,
        stack_num=1,
        episodic_life=False,
        life_loss_info=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    return VectorPool(_Games(env, _fire(env.ale.get_action_set()), episodic_life))


def atari_env(env_id: str, *, evaluation: bool = False, render_mode: str | None = None, **rules: Any) -> "AtariEnv":
    """Returns one Atari game by the rules of `atari_pool`, which can be rendered.

    Args:
        evaluation: render to "rgb_array", for a video, unless `render_mode` is given.
        rules: as `AtariEnv` takes them.
    """
    return AtariEnv(env_id, render_mode=render_mode or ("rgb_array" if evaluation else None), **rules)


class AtariEnv(gymnasium.Env):
    """One Atari game. Observations, rewards and ends equal those of `atari_pool`; `render()` gives [210, 160, 3] RGB.

    `reset(options={"noops": k})` begins with k frames instead of a random number of them.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": FRAMES_PER_SECOND // FRAME_SKIP}

    def __init__(
        self,
        env_id: str,
        *,
        repeat_action_probability: float = 0.0,
        max_num_frames: int = MAX_NUM_FRAMES,
        noop_max: int = NOOP_MAX,
        full_action_space: bool = False,
        render_mode: str | None = None,
    ) -> None:
        name = rom_name(env_id)
        import ale_py

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale, self.render_mode = ale_py.ALEInterface(), render_mode
        self.ale.setFloat("repeat_action_probability", repeat_action_probability)
        self.ale.setBool("display_screen", render_mode == "human")
        self._rom = cast(Path, ale_py.roms.get_rom_path(name))
        self._max_num_frames, self._noop_max = max_num_frames, noop_max
        self.ale.loadROM(self._rom)
        self._actions = self.ale.getLegalActionSet() if full_action_space else self.ale.getMinimalActionSet()
        self._noop, self._fire = ale_py.Action.NOOP, _fire(self._actions)
        self._screens = np.zeros((2, *self.ale.getScreenDims()), np.uint8)
        self._elapsed = 0  # frames
        self._lives, self._lost = 0, False  # lost: the last step lost a life
        self.observation_space = spaces.Box(0, 255, (HEIGHT, WIDTH), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.ale.setInt("random_seed", int(self.np_random.integers(2**31)))
            self.ale.loadROM(self._rom)  # the emulator reads its seed here
        self.ale.reset_game()
        noops = (options or {}).get("noops", self.np_random.integers(max(self._noop_max, 1)))
        first = self._noop if self._fire is None else self._actions[self._fire]
        for frame in range(max(noops, self._fire is not None)):
            self.ale.act(self._noop if frame else first)
            if self.ale.game_over():
                self.ale.reset_game()
        self._elapsed, self._lives, self._lost = 0, self.ale.lives(), False
        self._screens[0], self._screens[1] = self.ale.getScreenGrayscale(), 0
        return self._observation(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, button = 0, self._actions[self._fire if self._lost and self._fire is not None else action]
        for left in reversed(range(FRAME_SKIP)):
            reward += self.ale.act(button)
            self._elapsed += 1
            if self._over():
                break  # before it reads the screen, as ale-py does, so that last observations are equal
            if left < 2:
                self._screens[left] = self.ale.getScreenGrayscale()
        terminated = self.ale.game_over(with_truncation=False)
        self._lives, lives = self.ale.lives(), self._lives
        self._lost = self._lives < lives and not self._lost
        return self._observation(), float(reward), terminated, self._over() and not terminated, self._info()

    def render(self) -> np.ndarray | None:
        return self.ale.getScreenRGB() if self.render_mode == "rgb_array" else None

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """Returns {keys pressed together: action} for people: arrows and space."""
        keys = {"UP": "up", "DOWN": "down", "LEFT": "left", "RIGHT": "right", "FIRE": "space"}
        names = [action.name for action in self._actions]  # UPRIGHTFIRE
        return {tuple(key for word, key in keys.items() if word in name): index for index, name in enumerate(names)}

    def _over(self) -> bool:
        return self.ale.game_over(with_truncation=False) or self._elapsed >= self._max_num_frames

    def _observation(self) -> np.ndarray:
        np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        return cv2.resize(self._screens[0], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)

    def _info(self) -> dict[str, Any]:
        return {"lives": self.ale.lives(), "episode_frame_number": self.ale.getEpisodeFrameNumber()}


def rom_name(env_id: str) -> str:
    """Returns the name of a game's ROM: "pong" for "ALE/Pong-v5", "PongNoFrameskip-v4" or "pong".

    Raises:
        ExperimentError: there is no such game (the message names similar ones), or ale-py is not installed.
    """
    try:
        from ale_py import roms
    except ImportError:
        raise ExperimentError(
            f'{env_id} needs ale-py, which is not installed: pip install "tinyverse[atari]"'
        ) from None
    if re.search(r"-ram\b", env_id):
        raise ExperimentError(f"{env_id} shows the console's memory, and this plays with pictures: leave -ram out.")
    names = {_key(name): name for name in roms.get_all_rom_ids()}
    wanted = _key(re.sub(r"^ALE/|(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", env_id))
    if wanted not in names:
        close = [names[key] for key in difflib.get_close_matches(wanted, names)]
        hint = f" Did you mean {' or '.join(close)}?" if close else ' Games are spelled like "ALE/Pong-v5" or "pong".'
        raise ExperimentError(f"there is no Atari game {env_id!r}.{hint}")
    return names[wanted]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class _Games(VectorWrapper):
    """Gives observations [B, 84, 84], and counts lives: the step after a lost life presses FIRE.

    With `episodic_life`, a lost life ends an episode but not the game. As after every end, the next row counts as a
    reset, whose action is ignored.
    """

    def __init__(self, env: VectorEnv, fire: int | None, episodic_life: bool) -> None:
        super().__init__(env)
        self.single_observation_space = spaces.Box(0, 255, (HEIGHT, WIDTH), np.uint8)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._fire, self._episodic_life = fire, episodic_life
        self._lives, self._lost = np.zeros(env.num_envs, np.int32), np.zeros(env.num_envs, bool)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._lives[:], self._lost[:] = 0, False
        observations, infos = self.env.reset(**options)
        return observations[:, 0], infos

    def send(self, actions: np.ndarray) -> None:
        cast(Any, self.env).send(actions if self._fire is None else np.where(self._lost, self._fire, actions))

    def recv(self) -> tuple[Any, ...]:
        observations, rewards, terminated, truncated, infos = cast(Any, self.env).recv()
        over, lives = terminated | truncated, infos["lives"]
        self._lost = (lives < self._lives) & ~over & ~self._lost
        self._lives = np.where(over, 0, lives)  # a new game may begin with fewer lives than the old one had left
        if self._episodic_life:
            terminated = terminated | self._lost
        return observations[:, 0], rewards, terminated, truncated, {**infos, "game_over": over}


def _fire(buttons: list[Any]) -> int | None:
    """Returns the action that presses only FIRE, or None if the game has none."""
    from ale_py import Action

    return buttons.index(Action.FIRE) if Action.FIRE in buttons else None
