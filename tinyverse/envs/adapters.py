"""Adapters: give any single environment one interface: Gymnasium, old gym from 0.10 to 0.26, or dm_env.

    Gymnasium, gym 0.26   reset(seed=) -> observation, info     step -> observation, reward, terminated, truncated, info
    older gym             seed(seed); reset() -> observation    step -> observation, reward, done, info
    dm_env                reset() -> TimeStep                   step -> TimeStep

None of these packages is imported: adapters recognise an environment by its attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.envs.spaces import article, fit

GYM = ("reset", "step", "observation_space", "action_space")
DM_ENV = ("reset", "step", "observation_spec", "action_spec")


def adapted(env: Any) -> Any:
    """Returns a gym or Gymnasium environment as it is, and a dm_env environment in a `DmEnvAdapter`.

    Raises:
        ExperimentError: it is none of these.
    """
    if hasattr(env, "agent_iter"):
        raise ExperimentError(
            f"make_env gave {article(env)}, in which agents take turns (AEC), wanted all to act at once: "
            "return pettingzoo.utils.conversions.aec_to_parallel(env), if its environments allow it."
        )
    if all(hasattr(env, name) for name in GYM):
        return env
    if all(hasattr(env, name) for name in DM_ENV):
        return DmEnvAdapter(env)
    raise ExperimentError(
        f"make_env gave {article(env)}, wanted a gymnasium.Env (reset, step, observation_space, action_space)."
    )


def gymnasium_space(space: Any) -> spaces.Space:
    """Converts a space of old gym to Gymnasium's class; returns any other space as it is."""
    if isinstance(space, spaces.Space):
        return space
    kind = type(space).__name__
    if kind == "Dict":
        return spaces.Dict({name: gymnasium_space(part) for name, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([gymnasium_space(part) for part in space.spaces])
    if kind == "Box":
        return spaces.Box(space.low, space.high, space.shape, space.dtype)
    if kind == "Discrete":
        return spaces.Discrete(int(space.n), start=int(getattr(space, "start", 0)))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(space.nvec, dtype=space.dtype)
    if kind == "MultiBinary":
        return spaces.MultiBinary(space.n)
    return space


def reset(env: Any, spec: nest.Tree, seed: int | None) -> nest.Tree:
    """Begins an episode and returns its first observation. A seed is ignored if the environment takes none."""
    if seed is None:
        result = env.reset()
    elif _takes_seed(env):
        result = env.reset(seed=seed)
    else:
        if callable(getattr(env, "seed", None)):
            env.seed(seed)
        result = env.reset()
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result[0] if pair and not _is_like(spec, result) else result


def split_step(result: Any) -> tuple[nest.Tree, Any, bool, bool]:
    """Returns observation, reward, terminated and truncated of what `step` returned."""
    if len(result) == 5:
        return result[:4]
    observation, reward, done, info = result
    truncated = bool(done and (info or {}).get("TimeLimit.truncated", False))
    return observation, reward, bool(done and not truncated), truncated


def _takes_seed(env: Any) -> bool:
    parameters = inspect.signature(getattr(env, "unwrapped", env).reset).parameters.values()
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters)


def _is_like(spec: nest.Tree, thing: Any) -> bool:
    """Tells whether an (observation, info) pair could also be an observation of a Tuple space."""
    try:
        return isinstance(spec, tuple) and fit(spec, thing) is not None
    except SpecError:
        return False


class DmEnvAdapter:
    """Gives a dm_env environment Gymnasium's interface.

    A last step with discount 0 is a termination, any other last step a truncation. dm_env has no seeds, so equal seeds
    of a player do not give equal episodes; the function that makes the environment can seed it.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self.observation_space = _space_of_spec(env.observation_spec())
        self.action_space = _space_of_spec(env.action_spec())

    def reset(self, *, seed: int | None = None) -> tuple[nest.Tree, dict[str, Any]]:
        return _observed(self.observation_space, self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[nest.Tree, float, bool, bool, dict[str, Any]]:
        now = self._env.step(action)
        over, dead = bool(now.last()), now.discount is not None and not np.any(now.discount)
        observation = _observed(self.observation_space, now.observation)
        return observation, 0.0 if now.reward is None else now.reward, over and dead, over and not dead, {}

    def close(self) -> None:
        self._env.close()


def _space_of_spec(spec: Any) -> spaces.Space:
    if isinstance(spec, Mapping):
        return spaces.Dict({name: _space_of_spec(part) for name, part in spec.items()})
    if isinstance(spec, (tuple, list)):
        return spaces.Tuple([_space_of_spec(part) for part in spec])
    if hasattr(spec, "num_values"):
        return spaces.Discrete(int(spec.num_values))
    dtype, shape = np.dtype(spec.dtype), tuple(spec.shape)
    if dtype.kind not in "biuf":
        raise ExperimentError(f"{spec} holds no numbers. Wrap the environment so that its specs are arrays of numbers.")
    if dtype.kind == "b":
        return spaces.MultiBinary(shape) if shape else spaces.Discrete(2)
    lowest, highest = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low = np.broadcast_to(np.asarray(getattr(spec, "minimum", lowest), dtype), shape)
    high = np.broadcast_to(np.asarray(getattr(spec, "maximum", highest), dtype), shape)
    return spaces.Box(low, high, shape, dtype)


def _observed(space: spaces.Space, observation: Any) -> nest.Tree:
    """Copies observations, because dm_env may reuse its arrays; lists of arrays become tuples."""
    if isinstance(space, spaces.Dict):
        return {name: _observed(part, observation[name]) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_observed(part, value) for part, value in zip(space.spaces, observation, strict=True))
    return np.array(observation)
