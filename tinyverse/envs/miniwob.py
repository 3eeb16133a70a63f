"""MiniWoB++ (Liu et al. 2018): small web pages with a task in words, in headless Chromium, as arrays of numbers.

    "Click button ONE."  ──▶ utterance  [W]      hashed words        elements, one row for each leaf of the page:
    <button>ONE</button> ──▶ elements   [N, 11]  ────────────────▶   left, top, width, height, focused, tampered,
    the picture          ──▶ screenshot [h, w]   grey                 match, button, input, link, other

`match` is the share of the element's words that occur in the task. The page runs in real time, and a task fails after
ten seconds.
"""

import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np
import xxhash
from gymnasium import spaces

from tinyverse.core.errors import ExperimentError

WIDTH, HEIGHT = 160, 210  # pixels of every task
KINDS = ("button", "input", "a")
FEATURES = 7 + len(KINDS) + 1
LEAVES = ("elements", "utterance", "screenshot")
PROGRAMS = {"MINIWOB_CHROME_BINARY": "chromium", "MINIWOB_CHROMEDRIVER": "chromedriver"}


class MiniWobEnv(gymnasium.Env):
    """One task of https://miniwob.farama.org/environments/list. The first reset starts the browser.

    Args:
        task: "click-test-2", "click-dialog" …
        leaves: which of "elements", "utterance", "screenshot" are observed; they are the keys of a Dict.
        by: "elements": the action is the row of the element to click, and `available_actions` marks existing rows;
            "coordinates": the action is a column and a row of a grid over the page, and clicks the middle of that cell.
        num_elements, num_words, size: N, W, (h, w).
        grid: columns and rows for `by="coordinates"`.
    Raises:
        ExperimentError: miniwob, Chromium or its driver is not installed, or an argument has an unknown word.
    """

    def __init__(
        self,
        task: str = "click-test-2",
        *,
        leaves: Sequence[str] = ("elements", "utterance"),
        by: str = "elements",
        num_elements: int = 16,
        num_words: int = 32,
        size: tuple[int, int] = (84, 84),
        grid: tuple[int, int] = (16, 21),
    ) -> None:
        if set(leaves) - set(LEAVES) or not leaves or by not in ("elements", "coordinates"):
            raise ExperimentError(
                f"got leaves={tuple(leaves)} and by={by!r}; leaves are some of {', '.join(LEAVES)}, and by is "
                '"elements" or "coordinates".'
            )
        self.task, self.leaves, self.by, self.grid = task, tuple(leaves), by, grid
        self.num_elements, self.num_words, self.size = num_elements, num_words, size
        self._env: Any = None
        self._refs: list[int] = []
        all_leaves: dict[str, spaces.Space] = {
            "elements": spaces.Box(-10, 10, (num_elements, FEATURES), np.float32),
            "utterance": spaces.Box(0, np.inf, (num_words,), np.float32),
            "screenshot": spaces.Box(0, 255, size, np.uint8),
        }
        chosen = {name: all_leaves[name] for name in leaves}
        if by == "elements":
            chosen["available_actions"] = spaces.MultiBinary(num_elements)
        self.observation_space = spaces.Dict(chosen)
        self.action_space = spaces.Discrete(num_elements) if by == "elements" else spaces.MultiDiscrete(list(grid))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._env is None:
            self._env = _browser(self.task, self.grid)
            self._env.set_record_screenshots("screenshot" in self.leaves)
        page, _ = self._env.reset(seed=int(self.np_random.integers(2**31)))
        return self._observation(page), {"utterance": page["utterance"]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        page, reward, terminated, truncated, _ = self._env.step(self._click(action))
        return self._observation(page), float(reward), bool(terminated), bool(truncated), {}

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _click(self, action: Any) -> dict[str, Any]:
        nothing = {"action_type": 0, "ref": 0, "coords": np.zeros(2, np.int64)}
        if self.by == "coordinates":
            return nothing | {"action_type": 2, "coords": np.asarray(action)}
        row = int(action)
        return nothing | {"action_type": 1, "ref": self._refs[row]} if row < len(self._refs) else nothing

    def _observation(self, page: dict[str, Any]) -> dict[str, np.ndarray]:
        named = _words(page["utterance"])
        elements = [element for element in page["dom_elements"] if element["flags"][3]][: self.num_elements]
        self._refs = [int(element["ref"]) for element in elements]
        seen: dict[str, np.ndarray] = {}
        if "elements" in self.leaves:
            seen["elements"] = np.zeros((self.num_elements, FEATURES), np.float32)
            for row, element in enumerate(elements):
                seen["elements"][row] = np.clip(_features(element, named), -10, 10)
        if "utterance" in self.leaves:
            places = [xxhash.xxh32_intdigest(word.encode()) % self.num_words for word in named]
            seen["utterance"] = np.bincount(places, minlength=self.num_words).astype(np.float32)
        if "screenshot" in self.leaves:
            grey = cv2.cvtColor(np.ascontiguousarray(page["screenshot"]), cv2.COLOR_RGB2GRAY)
            seen["screenshot"] = cv2.resize(grey, self.size[::-1], interpolation=cv2.INTER_AREA)
        if self.by == "elements":
            # on an empty page the first row, which does nothing, is available: a mask needs an option
            seen["available_actions"] = (np.arange(self.num_elements) < max(1, len(elements))).astype(np.int8)
        return seen


def _features(element: dict[str, Any], named: list[str]) -> list[float]:
    """Returns one element as `FEATURES` numbers; lengths are in widths and heights of the page."""
    place = [element[name][0] / scale for name, scale in zip(("left", "top", "width", "height"), (WIDTH, HEIGHT) * 2)]
    words = _words(f"{element['text']} {element['value']}")
    match = sum(word in named for word in words) / max(1, len(words))
    kind = [element["tag"].lower().startswith(f"{kind}_") or element["tag"].lower() == kind for kind in KINDS]
    return [*place, *map(float, element["flags"][:2]), match, *map(float, kind), float(not any(kind))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _browser(task: str, grid: tuple[int, int]) -> Any:
    try:
        from miniwob.action import ActionSpaceConfig, ActionTypes
        from miniwob.environment import MiniWoBEnvironment
        from miniwob.reward import get_raw_reward
        from miniwob.selenium_instance import HTML_DIR
    except ImportError as error:
        raise ExperimentError(
            f'{task} needs {error.name}, which is not installed: pip install "tinyverse[browser]"'
        ) from None
    if not task.startswith("flight.") and not (HTML_DIR / "miniwob" / f"{task}.html").exists():
        raise ExperimentError(
            f'there is no task {task!r}; they are spelled like "click-test-2", see miniwob.farama.org.'
        )
    for variable, program in PROGRAMS.items():
        found = os.environ.get(variable) or shutil.which(program)
        if not found:
            raise ExperimentError(
                f"{program} is not installed: apt-get install chromium chromium-driver, or say where it is with {variable}."
            )
        os.environ[variable] = found
    kinds = [ActionTypes.NONE, ActionTypes.CLICK_ELEMENT, ActionTypes.CLICK_COORDS]
    return MiniWoBEnvironment(
        task, action_space_config=ActionSpaceConfig(kinds, coord_bins=grid), reward_processor=get_raw_reward
    )
