"""StarCraft II through pysc2 (Vinyals et al. 2017): feature layers in, a function with its arguments out.

    observations                                     actions
    screen     [L, S, S]  layers of the camera       function       one of 573
    minimap    [M, S, S]  layers of the whole map    screen         its argument if it takes a point: y · S + x
    player     [11]       minerals, food, … as log   minimap, queued, … one choice for each type of argument
    available_actions     which functions may be chosen now; every argument may

Agents make all choices at every step, but only the arguments that the function takes are sent. The game is Blizzard's
and cannot be installed from a package registry. The tests use pysc2's mock of it, which has the real specs but no game.
"""

import difflib
import os
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from tinyverse.core.errors import ExperimentError

SCREEN_LAYERS = (
    "player_relative",
    "selected",
    "unit_hit_points_ratio",
    "unit_density_aa",
    "visibility_map",
    "height_map",
)
MINIMAP_LAYERS = ("player_relative", "selected", "camera", "visibility_map", "height_map")
GAME = "https://github.com/Blizzard/s2client-proto#downloads"
MAPS = "https://github.com/deepmind/pysc2#get-the-maps"


class StarCraftEnv(gymnasium.Env):
    """One map, alone or against the built-in bot. The first reset starts the game.

    Args:
        map_name: a mini-game ("MoveToBeacon", "CollectMineralShards" …) or a melee map ("Simple64").
        size: S, the pixels of screen and minimap in each direction.
        screen_layers, minimap_layers: which of pysc2's layers are observed, each divided by its largest value. Layers
            of identifiers are divided too, though they would need an embedding.
        step_mul: game steps per agent step; the game makes 22.4 a second.
        make_game: makes the game, with the arguments of `sc2_env.SC2Env`; None: that class.
    Raises:
        ExperimentError: pysc2 cannot be used, or (at reset) the game or the map is missing.
    """

    def __init__(
        self,
        map_name: str = "MoveToBeacon",
        *,
        size: int = 32,
        screen_layers: Sequence[str] = SCREEN_LAYERS,
        minimap_layers: Sequence[str] = MINIMAP_LAYERS,
        step_mul: int = 8,
        make_game: Callable[..., Any] | None = None,
    ) -> None:
        sc2 = _pysc2()
        self.map_name, self.size, self._step_mul, self._make_game = map_name, size, step_mul, make_game
        self._sc2, self._map = sc2, _map(sc2, map_name)
        self._game: Any = None
        self._format = sc2.features.AgentInterfaceFormat(
            feature_dimensions=sc2.features.Dimensions(screen=size, minimap=size)
        )
        specs = sc2.features.Features(self._format, map_size=sc2.features.point.Point(size, size))
        self._types, self._functions = specs.action_spec().types, specs.action_spec().functions
        self._layers = {
            "screen": _layers(sc2.features.SCREEN_FEATURES, screen_layers),
            "minimap": _layers(sc2.features.MINIMAP_FEATURES, minimap_layers),
        }
        self.action_space = spaces.Dict(
            {"function": spaces.Discrete(len(self._functions))}
            | {kind.name: spaces.Discrete(int(np.prod(kind.sizes))) for kind in self._types}
        )
        # in the order of the network's heads
        self._options = {name: spaces.flatdim(leaf) for name, leaf in self.action_space.spaces.items()}
        self.observation_space = spaces.Dict(
            {name: spaces.Box(0, 1, (len(layers), size, size), np.float32) for name, layers in self._layers.items()}
            | {
                "player": spaces.Box(0, np.inf, specs.observation_spec()["player"], np.float32),
                "available_actions": spaces.MultiBinary(sum(self._options.values())),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode. Only the first seed has an effect, because pysc2 takes it when the game starts."""
        super().reset(seed=seed)
        if self._game is None:
            self._game = self._start(int(self.np_random.integers(2**31)))
        (self._now,) = self._game.reset()
        return self._observation(), {}

    def step(self, action: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        (self._now,) = self._game.step([self.call(action)])
        over = bool(self._now.last())
        terminated = over and self._now.discount == 0.0  # pysc2 does not set the discount to 0 at a time limit
        return self._observation(), float(self._now.reward), terminated, over and not terminated, {}

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def call(self, action: dict[str, Any]) -> Any:
        """Returns the pysc2 FunctionCall of an action, or a no-op if the function is not available."""
        function = int(action["function"])
        if function not in self._now.observation["available_actions"]:
            function = 0
        wanted = self._functions[function].args
        return self._sc2.actions.FunctionCall(function, [self._argument(kind, action) for kind in wanted])

    def _argument(self, kind: Any, action: dict[str, Any]) -> list[int]:
        """[x, y] of a point, [n] of any other."""
        choice, sizes = int(action[kind.name]), self._types[kind.id].sizes
        return [choice % sizes[0], choice // sizes[0]] if len(sizes) == 2 else [choice]

    def _observation(self) -> dict[str, np.ndarray]:
        seen = self._now.observation
        mask = {name: np.ones(count, np.int8) for name, count in self._options.items()}
        mask["function"] = np.zeros(len(self._functions), np.int8)
        mask["function"][np.asarray(seen["available_actions"], np.int64)] = 1
        layers = {}
        for name, chosen in self._layers.items():
            pixels = np.asarray(seen[f"feature_{name}"], np.float32)[[layer.index for layer in chosen]]
            scales = np.array([max(1, layer.scale - 1) for layer in chosen], np.float32)
            layers[name] = np.clip(pixels / scales[:, None, None], 0, 1)
        player = np.log1p(np.asarray(seen["player"], np.float32))
        return {**layers, "player": player, "available_actions": np.concatenate(list(mask.values()))}

    def _start(self, seed: int) -> Any:
        sc2 = self._sc2
        players = [sc2.env.Agent(sc2.env.Race.random)]
        if self._map.players and self._map.players > 1:
            players.append(sc2.env.Bot(sc2.env.Race.random, sc2.env.Difficulty.very_easy))
        try:
            return (self._make_game or sc2.env.SC2Env)(
                map_name=self.map_name, players=players, agent_interface_format=self._format,
                step_mul=self._step_mul, random_seed=seed,
            )  # fmt: skip
        except (sc2.LaunchError, OSError, ValueError) as error:
            raise ExperimentError(_advice(self.map_name, error)) from error


def _advice(map_name: str, error: Exception) -> str:
    """Returns what to do about a game that did not start."""
    folder = os.environ.get("SC2PATH", "~/StarCraftII")
    if "Map" in str(error) and "not found" in str(error):
        return f"the map {map_name} is not in {folder}/Maps: {error} Unpack it there, from {MAPS}."
    wrong = " SC2_PATH is set, but pysc2 reads SC2PATH." if "SC2_PATH" in os.environ else ""
    return (
        f"StarCraft II does not start from {folder}: {error}{wrong} Install the game ({GAME}) and set SC2PATH to its "
        'folder, the one with "Versions" and "Maps".'
    )


def _pysc2() -> SimpleNamespace:
    """Imports the parts of pysc2 that are used. Version 4.0.0 calls `random.shuffle` as Python 3.11 no longer allows."""
    shuffle = random.shuffle
    random.shuffle = lambda x, chance=None: shuffle(x)  # type: ignore[misc]
    try:
        from absl import flags
        from pysc2 import maps
        from pysc2.env import sc2_env
        from pysc2.lib import actions, features, sc_process
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"StarCraft II needs {error.name}, which is not installed: pip install -r docs/starcraft.txt --no-deps"
        ) from None
    except TypeError as error:
        if "Descriptors cannot" not in str(error):
            raise
        raise ExperimentError(
            "pysc2 needs protobuf 3.20, and a newer one is installed. Give StarCraft II a virtual environment of its "
            "own: pip install -r docs/starcraft.txt --no-deps"
        ) from None
    finally:
        random.shuffle = shuffle
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # pysc2 would parse our command line
    launch_error = sc_process.SC2LaunchError
    return SimpleNamespace(maps=maps, env=sc2_env, actions=actions, features=features, LaunchError=launch_error)


def _map(sc2: Any, name: str) -> Any:
    known = sc2.maps.get_maps()
    if name not in known:
        close = difflib.get_close_matches(name, known) or ["MoveToBeacon"]
        raise ExperimentError(f"pysc2 knows no map {name!r}. Did you mean {' or '.join(close)}?")
    return known[name]()


def _layers(features: Any, names: Sequence[str]) -> list[Any]:
    unknown = set(names) - set(features._fields)
    if unknown:
        raise ExperimentError(f"pysc2 has no layers {sorted(unknown)}; it has {', '.join(features._fields)}.")
    return [getattr(features, name) for name in names]
