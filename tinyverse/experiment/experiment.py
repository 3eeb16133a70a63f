"""Experiment: the environment, agent and learner of a run, written by the user in one module.

    def make_experiment(env_id="CartPole-v1", learning_rate=1e-3) -> Experiment: ...

The arguments of `make_experiment` are the settings. `-o learning_rate=3e-4` sets one, converted to the type of its
default. The trainer publishes all settings with the run.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.algorithms.function_learner import FunctionLearner
from tinyverse.algorithms.learner import Learner
from tinyverse.core import nest
from tinyverse.core.bounds import Bounds
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.session import SessionSpec, flatten, rows_beyond
from tinyverse.envs.factory import pool_of
from tinyverse.envs.pool import Pool

if TYPE_CHECKING:
    from tinyverse.replay.samplers import Sampler


class Experiment:
    """All functions and values that the user provides. Pass them as arguments, or override them in a subclass.

        make_env(evaluation=False)   returns one environment; it gets `render_mode` too if it takes that argument
        make_pool(num_envs)         returns a native vector environment for playing, instead of or beside `make_env`
        make_agent(observation_space, action_space)     returns an Agent
        make_learner(agent)          returns a Learner; alternatively give train_step(agent, batch) -> metrics
        keys                         for `play --human`: {"left": 0, "right+space": 3, …, "": no key}

    `make_pool` also gets `num_threads`, the cores to step on (`play --cores`), and `seed`, for environments that are
    seeded when they are made (envpool), if it takes these arguments. `keys` have pygame's names and actions as the
    environment takes them.

    The other attributes say how sessions are made and used. Options of the command line override batch_size, environments,
    buffer_size, reuse, max_lag, min_sessions, publish_every and precision.
    """

    unroll_length: int = 20  # steps per session
    batch_size: int = 10  # sessions per update
    num_envs: int = 1  # environments that one player steps at once
    buffer_size: int = 5000  # sessions
    sampler: str | Sampler = "fresh"
    reuse: float | None = None  # times that each session is learned from; None: as fast as the trainer can (Fresh: 1)
    max_lag: int | None = None  # updates
    min_sessions: int = 0
    publish_every: int = 10  # updates between two publications of weights
    precision: str = "fp32"  # or "bf16", or "auto": bf16 if the device has it in hardware
    frame_skip: int = 1  # environment frames per step; for display only
    keys: Mapping[str, Any] | None = None  # None: those of the environment's `get_keys_to_action`
    realtime: bool = False  # the environment does not wait for actions

    make_pool: Callable[[int], Any] | None = None
    train_step: Callable[[Agent, Any], Mapping[str, Any]] | None = None

    def __init__(self, **parts: Any) -> None:
        for name, part in parts.items():
            if name.startswith("_") or not hasattr(Experiment, name):
                known = [word for word in vars(Experiment) | Experiment.__annotations__ if not word.startswith("_")]
                raise ExperimentError(f"Experiment has no part {name!r}; it has {', '.join(sorted(known))}.")
            if not callable(part) and (name.startswith("make_") or name == "train_step"):
                raise ExperimentError(f"{name} is {part!r}, wanted a function.")
            setattr(self, name, part)
        self._spaces: tuple[Any, Any] | None = None

    def make_env(self, evaluation: bool = False) -> Any:
        raise ExperimentError(
            "the experiment gives no environment: pass it make_env=… or make_pool=…, or override one."
        )

    def make_agent(self, observation_space: Any, action_space: Any) -> Agent:
        raise ExperimentError("the experiment gives no agent: pass it make_agent=…, or override it.")

    def make_learner(self, agent: Agent) -> Learner:
        if self.train_step is None:
            raise ExperimentError(
                "the experiment cannot learn: pass it make_learner=… or train_step=…, or override one."
            )
        return FunctionLearner(self.train_step, agent)

    # the rest of the program calls the methods below; do not override them

    def check(self) -> None:
        """Raises ExperimentError where a number of things is no whole number of at least 1."""
        for name in ("unroll_length", "batch_size", "num_envs", "buffer_size", "publish_every", "frame_skip"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 1:
                raise ExperimentError(f"the experiment's {name} is {count!r}, wanted a whole number of at least 1.")

    def env(self, evaluation: bool = False, render_mode: str | None = None) -> Any:
        """Returns one environment; passes only arguments that the user's `make_env` takes."""
        with _readable():
            offered: dict[str, Any] = {"evaluation": evaluation, "render_mode": render_mode}
            parameters = inspect.signature(self.make_env).parameters
            if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
                offered = {name: value for name, value in offered.items() if name in parameters}
            return self.make_env(**offered)

    def pool(self, num_envs: int, cores: int = 1, *, seed: int | None = None, restart: bool = False) -> Pool:
        """Returns `num_envs` environments for playing.

        Args:
            cores: number of cores to step on, if `make_pool` supports it.
            seed: for environments that are seeded when they are made; None: a random one.
            restart: restart what fails, see `envs.restarts`.
        """
        seeds = itertools.count(secrets.randbits(30) if seed is None else seed % (1 << 30))
        make_pool = self.make_pool

        def make() -> Any:
            assert make_pool is not None
            offered = {"num_threads": cores, "seed": next(seeds)}
            taken = {name: value for name, value in offered.items() if _takes(make_pool, name)}
            with _readable():
                return _call("make_pool", functools.partial(make_pool, **taken), num_envs=num_envs)

        made, remake = (self.env, None) if make_pool is None else (make(), make)
        pool = pool_of(made, num_envs, realtime=self.realtime, restart=restart, remake=remake)
        self._spaces = (pool.observation_space, pool.action_space)
        return pool

    def spaces(self) -> tuple[Any, Any]:
        """Returns (observation space, action space) of one environment; makes one if there was none yet."""
        if self._spaces is None:
            self.pool(1).close()
        assert self._spaces is not None
        return self._spaces

    def agent(self) -> Agent:
        """Returns a new agent.

        Raises:
            ExperimentError: `make_agent` takes other arguments, or returned no agent.
        """
        observation_space, action_space = self.spaces()
        agent = _call("make_agent", self.make_agent, observation_space=observation_space, action_space=action_space)
        if not callable(getattr(agent, "act", None)):
            wanted = "an Agent with act(observations, state, is_first)"
            raise ExperimentError(f"make_agent returned {type(agent).__name__}, wanted {wanted}.")
        return agent

    def learner(self, agent: Agent) -> Learner:
        """Returns a new learner of `agent`.

        Raises:
            ExperimentError: `make_learner` takes other arguments, or returned no learner.
        """
        learner = _call("make_learner", self.make_learner, agent=agent)
        if not callable(getattr(learner, "train_step", None)):
            kind = type(learner).__name__
            raise ExperimentError(f"make_learner returned {kind}, wanted a Learner with train_step(batch).")
        return learner

    def spec(self, agent: Agent) -> SessionSpec:
        """Returns the spec of the run's sessions."""
        return session_spec(*self.spaces(), agent, self.unroll_length)


def _call(name: str, function: Callable[..., Any], **arguments: Any) -> Any:
    """Calls the user's function with positional arguments; raises ExperimentError where it does not take them."""
    try:
        inspect.signature(function).bind(*arguments.values())
    except TypeError as error:
        call = f"{name}({', '.join(arguments)})"
        raise ExperimentError(f"{name} is called as {call}, which it does not take: {error}.") from None
    except ValueError:  # a builtin, which has no signature
        pass
    return function(*arguments.values())


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a builtin, which has no signature
        return False


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns Gymnasium's errors (an unknown id, a missing package) into an ExperimentError with the same message."""
    try:
        yield
    except gymnasium.error.Error as error:
        raise ExperimentError(f"make_env: {error}") from error


def session_spec(observation_space: Any, action_space: Any, agent: Agent, length: int) -> SessionSpec:
    """Returns the spec of sessions of `length` steps with these spaces.

    It asks `agent` for one action, to learn the shapes of actions, extras and recurrent state.

    Raises:
        SpecError: a space's samples have no fixed shape.
    """
    observations = nest.of_space(observation_space, _blank)
    state = agent.initial_state(1)
    actions, _, extras = agent.act(observations, state, np.ones(1, bool))
    trees = {
        "observations": observations, "actions": actions, "rewards": np.zeros(1, np.float32),
        **dict.fromkeys(("terminated", "truncated", "valid"), np.zeros(1, bool)),
        "initial_state": agent.state_arrays(state), "extras": extras,
    }  # fmt: skip
    fields = {}
    for name, leaf in flatten(trees).items():
        (_, *shape), beyond = np.shape(leaf), rows_beyond(name)
        fields[name] = (tuple(shape) if beyond is None else (length + beyond, *shape), np.asarray(leaf).dtype)
    limits = flatten(
        {"observations": nest.of_space(observation_space, Bounds.of), "actions": nest.of_space(action_space, Bounds.of)}
    )
    discrete = {name for name, (_, dtype) in fields.items() if dtype.kind in "iu"}
    return SessionSpec(fields, {name: bounds for name, bounds in limits.items() if bounds and name in discrete})


def _blank(space: Any) -> np.ndarray:
    """Returns an observation [1, …] of the space: its lowest where it is discrete, else zeros."""
    if space.shape is None:
        raise SpecError(f"observations of {space} have no fixed shape; turn them into arrays in make_env.")
    bounds = Bounds.of(space)
    return np.full((1, *space.shape), 0 if bounds is None else bounds.low, space.dtype)
