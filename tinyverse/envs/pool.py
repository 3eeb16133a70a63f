"""Pool: B environments stepped together, with one interface whatever they are made of.

Autoreset is Gymnasium's NEXT_STEP: the step after an episode's end is the reset. It ignores the action, the reward is
0, the flags are False and the observation is the new episode's first.

    step           0    1    2    3    4
    observations   o1   o2   o3   p0   p1     o3 is the last of its episode, p0 the first of the next
    rewards        r    r    r    0    r
    terminated     –    –    ✓    –    –      (or truncated)

A reset may have to wait, because the environment restarts or other agents of its world still play. Each row is then
truncated again until the reset. A row after an end is never valid, whatever it holds.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.text import counted
from tinyverse.envs import spaces
from tinyverse.envs.adapters import MultiAgentAdapter, adapted, close, gymnasium_space, reset, split_step
from tinyverse.envs.restarts import MAX_FAILURES, RestartPolicy
from tinyverse.envs.spaces import ActionAdapter, Array

HALVES = (("send", "recv"), ("step_async", "step_wait"))  # names of the two halves of a vector environment's step


class Step(NamedTuple):
    """The result of one step of B environments; the arrays are valid until the next step."""

    observations: nest.Tree  # [B, …] per leaf, of the space's dtype
    rewards: np.ndarray  # [B] float32
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    game_over: np.ndarray | None = None  # [B] bool, if an episode is only a part of a game, such as a life


class Pool(abc.ABC):
    """B environments stepped together. Synonym: vector environment.

    Attributes:
        num_envs: B.
        observation_space, action_space: the Gymnasium spaces of one environment.
        realtime: the environments do not wait for actions, so the player must not block.
        faults, fault: how many failures led to restarts, and the newest traceback.
    """

    num_envs: int
    observation_space: Any
    action_space: Any
    realtime: bool = False
    faults: int = 0
    fault: str = ""

    @abc.abstractmethod
    def reset(self, seed: int | None = None) -> nest.Tree:
        """Begins an episode in every environment, equal for equal seeds; returns observations [B, …] per leaf."""

    @abc.abstractmethod
    def step(self, actions: nest.Tree) -> Step:
        """Steps every environment, and resets those whose episode ended at the step before.

        Args:
            actions: [B, …] per leaf; Box actions are clipped to the space's bounds.
        Raises:
            SpecError: actions or observations differ from their space in shape or dtype.
        """

    def send(self, actions: nest.Tree) -> None:
        """Begins a step, which `receive` ends. A pool without background stepping makes all of it in `receive`."""
        self._sent = actions

    def receive(self) -> Step:
        """Returns the result of the step that `send` began."""
        return self.step(self._sent)

    def close(self) -> None:  # noqa: B027
        """Closes the environments."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(self.num_envs, 'environment')}, {self.observation_space} -> {self.action_space})"


class SplitPool(Pool):
    """A pool that implements `send` and `receive`, of which a step consists."""

    def step(self, actions: nest.Tree) -> Step:
        self.send(actions)
        return self.receive()


class SerialPool(Pool):
    """Environments of any supported API (see `adapters`), stepped one by one in this process.

    An environment of A agents counts as A environments: the n-th has the indices n·A … n·A + A − 1 of the batch, and
    `num_envs` is rounded up to a multiple of A. With `restart`, an environment that raises or breaks its spaces is
    replaced (see `restarts`), which truncates the episodes of all its agents; otherwise the error is raised.

    Args:
        make_env: makes one environment.
    """

    def __init__(
        self, make_env: Callable[[], Any], num_envs: int, *, realtime: bool = False, restart: bool = False
    ) -> None:
        if num_envs < 1:
            raise ExperimentError(f"got {num_envs} environments, wanted 1 or more.")
        first, self._make = adapted(make_env()), make_env
        self.observation_space = gymnasium_space(first.observation_space)
        self.action_space = gymnasium_space(first.action_space)
        # of the rows of one environment: () for an index of the batch, (A,) for a slice
        self._shape = (len(first.agents),) if isinstance(first, MultiAgentAdapter) else ()
        agents = math.prod(self._shape)
        self._envs: list[Any] = [first]  # None: waits for its restart
        for _ in range(math.ceil(num_envs / agents) - 1):
            self._envs.append(self._one_more())
        self.num_envs, self.realtime = agents * len(self._envs), realtime
        starts = range(0, self.num_envs, agents)
        self._rows: list[Any] = [slice(start, start + agents) if self._shape else start for start in starts]
        self._spec = spaces.spec_of(self.observation_space, self._shape)
        # two buffers in turn: a failed environment repeats its rows of the step before
        self._observations, self._before = (
            spaces.blank(spaces.spec_of(self.observation_space, ()), self.num_envs) for _ in range(2)
        )
        self._checks = spaces.Checks(self.observation_space)
        self._action_adapter = ActionAdapter(self.action_space, self.num_envs)
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._terminated, self._truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        self._ended = [False] * len(self._envs)
        self._restarts = RestartPolicy(len(self._envs), "environment", restart=restart)
        self._seeds = np.random.SeedSequence().spawn(len(self._envs))

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._seeds = np.random.SeedSequence(seed).spawn(len(self._envs))
        for index in range(len(self._envs)):
            self._first_reset(index)
        self._ended = [False] * len(self._envs)
        return self._observations

    def step(self, actions: nest.Tree) -> Step:
        columns = self._action_adapter.columns(actions)
        if all(env is None for env in self._envs):
            self._restarts.wait(range(len(self._envs)))
        self._restarts.steps += 1
        self._observations, self._before = self._before, self._observations
        for index, ended in enumerate(self._ended):
            try:
                if ended:
                    self._begin(index)
                else:
                    self._step(index, columns)
            except Exception as error:
                self._fail(index, error)
        self._check_all()
        over = (self._terminated | self._truncated).reshape(len(self._envs), -1)
        self._ended = np.all(over, 1).tolist()
        return Step(self._observations, self._rewards, self._terminated, self._truncated)

    def close(self) -> None:
        for env in self._envs:
            if env is not None:
                close(env)

    def _step(self, index: int, columns: nest.Tree) -> None:
        rows = self._rows[index]
        result = self._envs[index].step(nest.map(lambda column: column[rows], columns))
        observation, reward, terminated, truncated = split_step(result)
        self._store(index, observation, spaces.fit_reward(self._shape, reward), terminated, truncated)

    def _begin(self, index: int) -> None:
        if self._envs[index] is not None:
            self._store(index, reset(self._envs[index], self._spec, None))
            self._restarts.recovered(index)
        elif self._restarts.delay(index):
            self._repeat(index)  # the reset is still to come
        else:
            self._envs[index] = self._one_more()
            self._restarts.restarted(index)
            self._store(index, reset(self._envs[index], self._spec, as_int(self._seeds[index].spawn(1)[0])))

    def _first_reset(self, index: int) -> None:
        """Resets an environment that has no earlier rows to repeat, so it waits until a restart succeeds."""
        while True:
            try:
                if self._envs[index] is None:
                    self._envs[index] = self._one_more()
                self._store(index, reset(self._envs[index], self._spec, as_int(self._seeds[index])))
                self._check(self._rows[index])
                return
            except Exception as error:
                self._fail(index, error)
                if self._restarts.failures(index) >= MAX_FAILURES:
                    raise
                self._restarts.wait([index])

    def _one_more(self) -> Any:
        """Makes another environment. Raises where it is not new, or not of the first one's kind."""
        env = adapted(self._make())
        if any(_innermost(env) is _innermost(other) for other in self._envs if other is not None):
            raise ExperimentError(
                f"make_env gave the same {type(_innermost(env)).__name__} twice, wanted a new environment at each call."
            )
        for name in ("observation_space", "action_space"):
            if (space := gymnasium_space(getattr(env, name))) != (first := getattr(self, name)):
                raise SpecError(
                    f"make_env gave an environment with the {name} {space}, the one before had {first}. "
                    "It must give one kind of environment."
                )
        return env

    def _fail(self, index: int, error: Exception) -> None:
        """Closes a failed environment. Its rows repeat the rows before and truncate the episodes."""
        self._restarts.failed(index, error)
        self.faults, self.fault = self._restarts.faults, self._restarts.fault
        env, self._envs[index] = self._envs[index], None
        close(env)
        self._repeat(index)

    def _check_all(self) -> None:
        """Fails the environments whose observations are no numbers, or not in their space."""
        try:
            self._check(slice(None))
        except SpecError:
            for index, rows in enumerate(self._rows):
                try:
                    self._check(rows)
                except SpecError as error:
                    self._fail(index, error)

    def _check(self, rows: Any) -> None:
        self._checks.check(nest.map(lambda leaf: leaf[rows], self._observations))

    def _repeat(self, index: int) -> None:
        rows = self._rows[index]
        self._store(index, nest.map(lambda leaf: leaf[rows], self._before), truncated=True)

    def _store(
        self, index: int, observation: nest.Tree, reward: Any = 0.0, terminated: Any = False, truncated: Any = False
    ) -> None:
        rows, fitting = self._rows[index], spaces.fit(self._spec, observation)
        if isinstance(self._spec, Array):  # the common case, without the overhead of a tree
            self._observations[rows] = fitting
        else:
            nest.assign(self._observations, rows, fitting)
        self._rewards[rows], self._terminated[rows], self._truncated[rows] = reward, terminated, truncated


class VectorPool(SplitPool):
    """A native Gymnasium VectorEnv whose autoreset is NEXT_STEP or DISABLED.

    A DISABLED one steps all environments at once and refuses those whose episode is over. The pool therefore resets
    these twice: before the step, so that they can be stepped, and after it, which undoes that step. Each episode costs
    one more reset and step.
    """

    def __init__(self, env: VectorEnv, *, realtime: bool = False) -> None:
        self.num_envs, self.realtime = env.num_envs, realtime
        self._env, self._resets = env, _autoreset(env) is AutoresetMode.DISABLED
        self._ended = np.zeros(self.num_envs, bool)
        # looks at the class, because a wrapper's instance forwards these names to the environment inside
        halves = [names for names in HALVES if hasattr(type(env), names[0]) and not self._resets]
        self._halves = tuple(getattr(env, name) for name in halves[0]) if halves else None
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._spec = spaces.spec_of(self.observation_space, (self.num_envs,))
        self._checks = spaces.Checks(self.observation_space)
        self._action_adapter = ActionAdapter(self.action_space, self.num_envs)

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._ended = np.zeros(self.num_envs, bool)
        # hashed, because vector environments use seed, seed + 1 …, and players with neighbouring seeds would share episodes
        return self._checked(self._env.reset(seed=as_int(np.random.SeedSequence(seed)))[0])

    def send(self, actions: nest.Tree) -> None:
        self._sent = self._action_adapter.arrays(actions)
        if self._halves is not None:
            self._halves[0](self._sent)

    def receive(self) -> Step:
        again = self._resets and bool(self._ended.any())
        if again:
            self._reset_ended()
        result = self._env.step(self._sent) if self._halves is None else self._halves[1]()
        observations, rewards, terminated, truncated, infos = result
        with np.errstate(over="ignore"):
            rewards = np.array(rewards, np.float32)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        if again:
            observations = self._reset_ended()
            rewards[self._ended], terminated[self._ended], truncated[self._ended] = 0.0, False, False
        spaces.check_finite(rewards, "reward")
        observations = self._checked(observations)
        self._ended = terminated | truncated
        return Step(observations, rewards, terminated, truncated, infos.get("game_over"))

    def close(self) -> None:
        close(self._env)

    def _reset_ended(self) -> nest.Tree:
        return self._env.reset(options={"reset_mask": self._ended.copy()})[0]

    def _checked(self, observations: nest.Tree) -> nest.Tree:
        fitting = spaces.fit(self._spec, observations)
        self._checks.check(fitting)
        return fitting


def _innermost(env: Any) -> Any:
    """Returns the environment within all wrappers."""
    return getattr(env, "unwrapped", env)


def as_int(sequence: np.random.SeedSequence) -> int:
    """Returns a seed for an environment."""
    return int(sequence.generate_state(1)[0]) >> 2  # below 2^30, so that seed + 1, seed + 2 … stay below 2^31


def _autoreset(env: VectorEnv) -> AutoresetMode:
    """Returns how a VectorEnv resets, by its attribute or else its metadata, and refuses modes that cannot be used.

    ale-py writes its mode into the dict that all VectorEnv classes share, so that dict says nothing about a class.
    """
    name, shared = type(env.unwrapped).__name__, env.metadata is VectorEnv.metadata
    mode = getattr(env.unwrapped, "autoreset_mode", None) or (None if shared else env.metadata.get("autoreset_mode"))
    if mode is None:
        raise ExperimentError(
            f"{name} does not say how it resets: give it metadata = "
            '{"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP} if the step after an end is the reset.'
        )
    if AutoresetMode(mode) is AutoresetMode.SAME_STEP:
        raise ExperimentError(
            f"{name} resets in the step that ends an episode (SAME_STEP), wanted NEXT_STEP: "
            "build it with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP."
        )
    return AutoresetMode(mode)
