"""Adapters: give any environment one interface: Gymnasium, old gym from 0.10 to 0.26, dm_env, or PettingZoo's parallel.

    Gymnasium, gym 0.26   reset(seed=) -> observation, info     step -> observation, reward, terminated, truncated, info
    older gym             seed(seed); reset() -> observation    step -> observation, reward, done, info
    dm_env                reset() -> TimeStep                   step -> TimeStep
    PettingZoo            as Gymnasium, with a dict {agent: …} for each value

None of these packages is imported: adapters recognise an environment by its attributes.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.text import article
from tinyverse.envs.spaces import blank, fit, fit_reward, spec_of

logger = logging.getLogger(__name__)

GYM = ("reset", "step", "observation_space", "action_space")
DM_ENV = ("reset", "step", "observation_spec", "action_spec")


def adapted(env: Any) -> Any:
    """Returns a gym or Gymnasium environment as it is, any other in a `DmEnvAdapter` or a `MultiAgentAdapter`.

    Raises:
        ExperimentError: it is none of these.
    """
    if hasattr(env, "agent_iter"):
        raise ExperimentError(
            f"make_env gave {article(env)}, in which agents take turns (AEC), wanted all to act at once: "
            "return pettingzoo.utils.conversions.aec_to_parallel(env), if its environments allow it."
        )
    if hasattr(env, "possible_agents"):
        return MultiAgentAdapter(env)
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


def close(thing: Any) -> None:
    """Closes an environment or a pool, where it can be closed. An error is logged: what it was for is done by then."""
    try:
        getattr(thing, "close", lambda: None)()
    except Exception as error:
        logger.warning("%s could not be closed: %s: %s", article(thing), type(error).__name__, error)


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
    """Returns observation, reward, terminated and truncated of what `step` returned. Raises SpecError for other things."""
    if not isinstance(result, (tuple, list)) or len(result) not in (4, 5):
        got = f"{len(result)} values" if isinstance(result, (tuple, list)) else article(result)
        raise SpecError(
            f"the environment's step() returned {got}, wanted observation, reward, terminated, truncated, info."
        )
    if len(result) == 5:
        observation, reward, terminated, truncated, _ = result
        return observation, reward, terminated, truncated
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
        close(self._env)


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


class MultiAgentAdapter:
    """Gives a PettingZoo parallel environment of A agents Gymnasium's interface: each value has an axis [A] in front.

    All agents share one set of weights. An agent that is out repeats its last observation and is truncated at each
    step until the next episode, which begins for all agents at once.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.agents = env, list(env.possible_agents)
        self.observation_space = _shared(env.observation_space, self.agents, "observation")
        self.action_space = _shared(env.action_space, self.agents, "action")
        self._spec = spec_of(self.observation_space, ())
        self._observations = blank(self._spec, len(self.agents))
        self._over = np.zeros(len(self.agents), bool)

    def reset(self, *, seed: int | None = None) -> tuple[nest.Tree, dict[str, Any]]:
        observations = (self.env.reset() if seed is None else self.env.reset(seed=seed))[0]
        missing = [agent for agent in self.agents if agent not in observations]
        if missing:
            raise SpecError(f"reset gave no observation of {missing}, wanted one of each of possible_agents.")
        for index, agent in enumerate(self.agents):
            nest.assign(self._observations, index, fit(self._spec, observations[agent]))
        self._over[:] = False
        return self._observations, {}

    def step(self, actions: nest.Tree) -> tuple[nest.Tree, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        playing = {agent: index for index, agent in enumerate(self.agents) if not self._over[index]}
        chosen = {agent: nest.map(lambda column: column[index], actions) for agent, index in playing.items()}  # noqa: B023
        observations, rewards, terminated, truncated, _ = self.env.step(chosen)
        paid, dead, cut = np.zeros(len(self.agents)), np.zeros(len(self.agents), bool), self._over.copy()
        for agent, index in playing.items():
            paid[index] = fit_reward((), rewards.get(agent, 0.0))
            dead[index] = terminated.get(agent, False)
            # an agent that vanishes without flags is truncated
            cut[index] = not dead[index] and truncated.get(agent, agent not in observations)
            if agent in observations:
                nest.assign(self._observations, index, fit(self._spec, observations[agent]))
        self._over = dead | cut
        return self._observations, paid, dead, cut, {}

    def close(self) -> None:
        close(self.env)


def _shared(space_for: Callable[[Any], Any], agents: list[Any], what: str) -> Any:
    """Returns the space that all agents have, and refuses agents whose spaces differ."""
    spaces = [gymnasium_space(space_for(agent)) for agent in agents]
    for agent, space in zip(agents, spaces, strict=True):
        if space != spaces[0]:
            raise ExperimentError(
                f"the {what} space of agent {agents[0]} is {spaces[0]}, that of {agent} is {space}; agents that share "
                "their weights need one space: pad them in make_env (supersuit does it)."
            )
    return spaces[0]
