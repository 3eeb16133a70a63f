"""Human: a person plays, in a window, at the game's own pace; the agent's state and extras run beside them.

Whoever learns from it must know what the person's policy μ was. Nobody does, but a person does not throw dice: the
action they took is the one they meant, so μ(a|o) = 1, `behaviour_log_prob` is 0 and `behaviour_logits` have all their
mass on it. V-trace's ratio π/μ is then π(a|o), never above 1: its values become those of what the person did, and its
gradient moves slowly where the agent would hardly have done the same. To call the person's action a sample of the
agent's own policy (ratio 1) would be wrong by the factor 1/π(a|o). To imitate at once, there is `BehaviourCloning`.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SettingsError, WindowClosed
from tinyverse.core.weights import Weights
from tinyverse.envs.pool import SerialPool
from tinyverse.envs.video import picture
from tinyverse.experiment.experiment import Experiment

FPS = 30.0  # steps a second, where the environment says nothing of its frames
UNLIKELY = -40.0  # logit of the actions that a person did not take: e^-40 is nothing in float32
LATE = 5  # steps behind the clock after which it starts anew instead of racing


class HumanControls:
    """The one environment that a person plays, its window and its keys.

    Args:
        title: of the window.
        fps: steps a second; None: the environment's `render_fps`, else 30.
    Raises:
        ExperimentError: nothing can be seen, several agents play, or the keys are no actions of the environment.
        SettingsError: pygame or a screen is missing.
    """

    def __init__(self, experiment: Experiment, title: str, fps: float | None = None) -> None:
        def make() -> Any:
            self._env = experiment.env(render_mode="rgb_array")
            return self._env

        self.pool = SerialPool(make, 1, realtime=True)
        if self.pool.num_envs > 1:
            raise ExperimentError(f"a person plays one agent, and this environment has {self.pool.num_envs}.")
        self.keys = bindings(experiment.keys, self._env, self.pool.action_space)
        fps = fps or (getattr(self._env, "metadata", None) or {}).get("render_fps") or FPS
        names = sorted({name for keys in self.keys for name in keys})
        self.window = Window(f"{title}: {', '.join(names)}; Escape ends", fps)
        self.window.check(names)

    def agent(self, agent: Agent) -> "HumanAgent":
        """Returns an agent that acts as the person wants it."""
        return HumanAgent(agent, self.pool.action_space, self._choose)

    def _choose(self, observations: nest.Tree) -> nest.Tree:
        frame = picture(observations, self._env)
        if frame is None:
            raise ExperimentError(
                "there is nothing to be seen of this game: let make_env take render_mode='rgb_array', or give images."
            )
        self.window.show(frame)
        pressed = self.window.wait()
        return self.keys[max((keys for keys in self.keys if keys <= pressed), key=len)]


class HumanAgent(Agent):
    """An agent whose actions a person chooses. State, extras and weights are the agent's own."""

    def __init__(self, agent: Agent, action_space: Any, choose: Callable[[nest.Tree], nest.Tree]) -> None:
        self.agent, self._choose = agent, choose
        self._start = int(getattr(action_space, "start", 0)) if not hasattr(action_space, "nvec") else 0

    def seed(self, seed: int) -> None:
        self.agent.seed(seed)

    def initial_state(self, n: int) -> Any:
        return self.agent.initial_state(n)

    def act(
        self, observations: nest.Tree, state: Any, is_first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, Any, dict[str, np.ndarray]]:
        """Acts as the person in one environment, after the next tick of the window's clock."""
        actions, state, extras = self.agent.act(observations, state, is_first, greedy)
        chosen = self._choose(observations)
        actions = nest.map(lambda like, part: np.asarray(part, np.asarray(like).dtype)[None], actions, chosen)
        certain = {}
        if "behaviour_log_prob" in extras:
            certain["behaviour_log_prob"] = np.zeros_like(extras["behaviour_log_prob"])
        if "behaviour_logits" in extras:
            logits = np.full_like(extras["behaviour_logits"], UNLIKELY)
            logits[0, int(chosen) - self._start] = 0.0
            certain["behaviour_logits"] = logits
        return actions, state, {**extras, **certain}

    def state_arrays(self, state: Any) -> nest.Tree:
        return self.agent.state_arrays(state)

    def get_weights(self) -> Weights:
        return self.agent.get_weights()

    def set_weights(self, weights: Weights) -> None:
        self.agent.set_weights(weights)


def bindings(keys: Mapping[str, Any] | None, env: Any, action_space: Any) -> dict[frozenset[str], Any]:
    """Returns {keys pressed together: action}; no key is the first action, or zeros, unless `keys` has "".

    Args:
        keys: as `Experiment.keys`; None: those of the environment's `get_keys_to_action`, as Gymnasium's `play` has it.
    Raises:
        ExperimentError: neither names any, or one is no action of the space.
    """
    if keys is None:
        named: Mapping[Any, Any] = getattr(getattr(env, "unwrapped", env), "get_keys_to_action", dict)()
        keys = {"+".join(map(_key_name, combination)): action for combination, action in named.items()}
    if not keys:
        raise ExperimentError(
            "this game does not say which key means which action: give Experiment "
            'keys={"left": 0, "right": 1}, and "" for no key at all.'
        )
    nothing = nest.of_space(action_space, lambda space: getattr(space, "start", np.zeros(space.shape, space.dtype)))
    return {
        frozenset(name.strip() for name in combination.split("+") if name): _fitted(combination, action, action_space)
        for combination, action in {"": nothing, **keys}.items()
    }


def _key_name(key: int | str) -> str:
    name = chr(key) if isinstance(key, int) else key
    return "space" if name == " " else name


def _fitted(keys: str, action: Any, space: Any) -> nest.Tree:
    """Returns the action as arrays of the space's dtypes."""
    try:
        dtypes = nest.of_space(space, lambda part: part.dtype)
        fitted = nest.map(lambda dtype, leaf: np.asarray(leaf, dtype), dtypes, action)
        sound = space.contains(nest.map(lambda leaf: leaf if leaf.ndim else leaf[()], fitted))
    except (LookupError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ExperimentError(f"the key {keys or 'none'!r} means {action!r}, which is no action of {space}.")
    return fitted


class Window:
    """A window of pygame that shows frames at a steady pace and knows which keys are down.

    Raises:
        SettingsError: pygame is not installed, or there is no screen.
    """

    def __init__(self, title: str, fps: float) -> None:
        self.closed, self._title = False, title
        self._pygame, self._tick, self._next = _pygame(), 1 / fps, 0.0
        self._pressed: set[str] = set()  # since the last step, however shortly
        self._down: set[str] = set()
        self._screen: Any = None

    def check(self, names: Iterable[str]) -> None:
        """Raises ExperimentError if pygame has no key of such a name."""
        for name in names:
            try:
                self._pygame.key.key_code(name)
            except ValueError:
                raise ExperimentError(
                    f"there is no key {name!r}; keys are called as pygame calls them: a, left, space, return, left shift."
                ) from None

    def show(self, frame: np.ndarray) -> None:
        """Draws a frame [H, W] or [H, W, 3], uint8, as large as the window allows in the same proportions."""
        pygame = self._pygame
        height, width = frame.shape[:2]
        if self._screen is None:
            factor = max(1, round(480 / height))
            self._screen = pygame.display.set_mode((width * factor, height * factor), pygame.RESIZABLE)
            pygame.display.set_caption(self._title)
        rgb = np.broadcast_to(np.atleast_3d(frame), (height, width, 3))
        image = pygame.surfarray.make_surface(rgb.swapaxes(0, 1))
        place = image.get_rect().fit(self._screen.get_rect())
        self._screen.fill((0, 0, 0))
        self._screen.blit(pygame.transform.scale(image, place.size), place)
        pygame.display.flip()

    def wait(self) -> set[str]:
        """Waits for the clock; returns the keys that are down, or were at any time since the last call.

        Raises:
            WindowClosed: the person has closed the window or pressed Escape.
        """
        now, due = time.monotonic(), self._next + self._tick
        self._next = due if due > now - LATE * self._tick else now + self._tick
        while not self.closed and (left := self._next - time.monotonic()) > 0:
            self.refresh()
            time.sleep(min(left, 0.005))
        self.refresh()
        if self.closed:
            raise WindowClosed
        pressed, self._pressed = self._pressed | self._down, set()
        return pressed

    def refresh(self) -> None:
        """Reads the keyboard; also while nobody plays, or the system thinks that the window hangs."""
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                self.closed = True
            elif event.type == pygame.KEYDOWN:
                name = pygame.key.name(event.key)
                self._pressed.add(name)
                self._down.add(name)
            elif event.type == pygame.KEYUP:
                self._down.discard(pygame.key.name(event.key))
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._down.clear()

    def close(self) -> None:
        self._pygame.display.quit()


def _pygame() -> Any:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError:
        raise SettingsError(
            "a person plays in a window of pygame, which is not installed: pip install 'tinyverse[human]'."
        ) from None
    try:
        pygame.display.init()
    except pygame.error as error:
        raise SettingsError(f"no window can be opened here ({error}). Play where there is a screen.") from None
    if pygame.display.get_driver() in ("dummy", "offscreen") and "SDL_VIDEODRIVER" not in os.environ:
        raise SettingsError("no window can be opened here: there is no screen. Is DISPLAY set?")
    return pygame
