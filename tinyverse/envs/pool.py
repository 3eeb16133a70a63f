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

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.core.text import counted
from tinyverse.envs.adapters import adapted, gymnasium_space, reset, split_step
from tinyverse.envs.restarts import MAX_FAILURES, RestartPolicy
from tinyverse.envs.spaces import (
    ActionAdapter,
    Array,
    blank,
    fit,
    fit_leaf,
    floats_of,
    has_nan,
    not_a_number,
    number_of,
    spec_of,
    unlike,
)

HALVES = (("send", "recv"), ("step_async", "step_wait"))  # names of the two halves of a vector environment's step


class Step(NamedTuple):
    """The result of one step of B environments; the arrays are valid until the next step."""

    observations: nest.Tree  # [B, …] per leaf, of the space's dtype
    rewards: np.ndarray  # [B] float32
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool
    game_over: np.ndarray | None = (
        None  # [B] bool, if an episode is only a part of an environment, such as a life; else None
    )


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
        """Begins an episode in every environment.

        Equal seeds give equal episodes. Returns observations [B, …] per leaf.
        """

    @abc.abstractmethod
    def step(self, actions: nest.Tree) -> Step:
        """Steps every environment, and resets those whose episode ended at the step before.

        Args:
            actions: [B, …] per leaf; Box actions are clipped to the space's bounds.
        Raises:
            SpecError: actions or observations differ from their space in shape or dtype.
        """

    def send(self, actions: nest.Tree) -> None:
        """Begins a step.

        `receive` returns its result. A pool without background stepping makes the whole step in `receive`.
        """
        self._sent = actions

    def receive(self) -> Step:
        """Returns the result of the step that `send` began."""
        return self.step(self._sent)

    def close(self) -> None:  # noqa: B027
        """Closes the environments."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(self.num_envs, 'environment')}, {self.observation_space} -> {self.action_space})"


class SerialPool(Pool):
    """Single environments of any supported API (see `adapters`), stepped one by one in this process.

    With `restart`, an environment that raises or breaks its spaces is replaced (see `restarts`); otherwise the error is
    raised.

    Args:
        make_env: makes one environment.
    """

    def __init__(
        self, make_env: Callable[[], Any], num_envs: int, *, realtime: bool = False, restart: bool = False
    ) -> None:
        check_count(num_envs)
        self._make = make_env
        self._envs: list[Any] = [adapted(make_env()) for _ in range(num_envs)]  # None: waits for its restart
        self.num_envs, self.realtime = num_envs, realtime
        spaces = self._envs[0].observation_space, self._envs[0].action_space
        self.observation_space, self.action_space = map(gymnasium_space, spaces)
        self._spec = spec_of(self.observation_space, ())
        # two buffers in turn: a failed environment repeats its row of the step before
        self._observations, self._before = (blank(self._spec, num_envs) for _ in range(2))
        self._floats, self._floats_before = floats_of(self._observations), floats_of(self._before)
        self._action_adapter = ActionAdapter(self.action_space, num_envs)
        self._rewards = np.zeros(num_envs, np.float32)
        self._terminated, self._truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self._ended = [False] * num_envs
        self._restarts = RestartPolicy(num_envs, "environment") if restart else None
        self._missing = 0  # environments that wait for their restart
        self._seeds: list[np.random.SeedSequence] = []
        self._step_count = 0

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._seeds = np.random.SeedSequence(seed).spawn(self.num_envs)
        for index in range(self.num_envs):
            self._first_reset(index)
        self._ended = [False] * self.num_envs
        return self._observations

    def step(self, actions: nest.Tree) -> Step:
        columns = self._action_adapter.columns(actions)
        if self._missing == self.num_envs and self._restarts is not None:
            self._restarts.wait(list(range(self.num_envs)))
        self._step_count += 1
        self._observations, self._before = self._before, self._observations
        self._floats, self._floats_before = self._floats_before, self._floats
        rewards, terminated, truncated = zip(
            *[self._row(index, columns) for index in range(self.num_envs)], strict=True
        )
        self._rewards[:], self._terminated[:], self._truncated[:] = rewards, terminated, truncated
        if not math.isfinite(sum(rewards)) or has_nan(self._floats):
            self._fail_rows_with_nan()
        self._ended = (self._terminated | self._truncated).tolist()
        return Step(self._observations, self._rewards, self._terminated, self._truncated)

    def close(self) -> None:
        for env in self._envs:
            if env is not None:
                env.close()

    def _row(self, index: int, columns: nest.Tree) -> tuple[float, bool, bool]:
        """Returns reward and flags of an environment's next row, and stores its observation."""
        try:
            return self._begin(index) if self._ended[index] else self._step(index, columns)
        except Exception as error:
            if self._restarts is None:
                raise
            return self._fail(index, error)

    def _step(self, index: int, columns: nest.Tree) -> tuple[float, bool, bool]:
        result = self._envs[index].step(nest.map(lambda column: column[index], columns))
        observation, reward, terminated, truncated = split_step(result)
        self._store(index, observation)
        return number_of(reward), terminated, truncated

    def _begin(self, index: int) -> tuple[float, bool, bool]:
        if self._envs[index] is not None:
            self._store(index, reset(self._envs[index], self._spec, None))
            if self._restarts is not None:
                self._restarts.recovered(index)
            return 0.0, False, False
        assert self._restarts is not None
        if self._restarts.delay(index):
            self._repeat(index)
            return 0.0, False, True  # the reset is still to come
        self._build(index)
        self._restarts.restarted(index, step=self._step_count)
        self._store(index, reset(self._envs[index], self._spec, self._next_seed(index)))
        return 0.0, False, False

    def _first_reset(self, index: int) -> None:
        """Resets an environment that has no earlier row to repeat, so it waits until a restart succeeds."""
        while True:
            try:
                if self._envs[index] is None:
                    self._build(index)
                self._store(index, reset(self._envs[index], self._spec, as_int(self._seeds[index])))
                if self._has_nan(index):
                    raise not_a_number("observation")
                return
            except Exception as error:
                if self._restarts is None:
                    raise
                self._fail(index, error)
                if self._restarts.failures(index) >= MAX_FAILURES:
                    raise
                self._restarts.wait([index])

    def _next_seed(self, index: int) -> int | None:
        return as_int(self._seeds[index].spawn(1)[0]) if self._seeds else None

    def _build(self, index: int) -> None:
        env = adapted(self._make())
        if spec_of(gymnasium_space(env.observation_space), ()) != self._spec:
            raise SpecError(
                f"make_env gave an environment with the observation_space {env.observation_space}, "
                f"the one before had {self.observation_space}. It must give one kind of environment."
            )
        self._envs[index] = env
        self._missing -= 1

    def _fail(self, index: int, error: Exception) -> tuple[float, bool, bool]:
        """Closes a failed environment. Its row repeats the row before and truncates the episode."""
        assert self._restarts is not None
        env, self._envs[index] = self._envs[index], None
        self._missing += env is not None
        with contextlib.suppress(Exception):  # an error while closing a broken environment is of no use
            env.close()
        self._repeat(index)
        self._restarts.failed(index, error, step=self._step_count)
        self.faults, self.fault = self._restarts.faults, self._restarts.fault
        return 0.0, False, True

    def _fail_rows_with_nan(self) -> None:
        for index in range(self.num_envs):
            has_nan_observation = self._has_nan(index)
            if has_nan_observation or not math.isfinite(self._rewards[index]):
                error = not_a_number("observation" if has_nan_observation else "reward")
                if self._restarts is None:
                    raise error
                self._rewards[index], self._terminated[index], self._truncated[index] = self._fail(index, error)

    def _has_nan(self, index: int) -> bool:
        return any(np.isnan(leaf[index]).any() for leaf in nest.leaves(self._observations) if leaf.dtype.kind == "f")

    def _repeat(self, index: int) -> None:
        nest.map(lambda now, before: now.__setitem__(index, before[index]), self._observations, self._before)

    def _store(self, index: int, observation: nest.Tree) -> None:
        def store(wanted: Array, batch: np.ndarray, part: Any) -> None:
            batch[index] = fit_leaf(wanted, part)

        try:
            if isinstance(self._spec, Array):  # the common case, without the overhead of a tree
                self._observations[index] = fit_leaf(self._spec, observation)
            else:
                nest.map(store, self._spec, self._observations, observation)
        except (LookupError, TypeError, ValueError):
            raise unlike(observation) from None


class VectorPool(Pool):
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
        self._spec = spec_of(self.observation_space, (self.num_envs,))
        self._action_adapter = ActionAdapter(self.action_space, self.num_envs)

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._ended = np.zeros(self.num_envs, bool)
        # hashed, because vector environments use seed, seed + 1 …, and players with neighbouring seeds would share episodes
        return self._checked(self._env.reset(seed=as_int(np.random.SeedSequence(seed)))[0])

    def step(self, actions: nest.Tree) -> Step:
        self.send(actions)
        return self.receive()

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
        rewards = np.array(rewards, np.float32)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        if again:
            observations = self._reset_ended()
            rewards[self._ended], terminated[self._ended], truncated[self._ended] = 0.0, False, False
        if not np.isfinite(rewards).all():
            raise not_a_number("reward")
        observations = self._checked(observations)
        self._ended = terminated | truncated
        return Step(observations, rewards, terminated, truncated, infos.get("game_over"))

    def close(self) -> None:
        self._env.close()

    def _reset_ended(self) -> nest.Tree:
        return self._env.reset(options={"reset_mask": self._ended.copy()})[0]

    def _checked(self, observations: nest.Tree) -> nest.Tree:
        fitting = fit(self._spec, observations)
        if has_nan(floats_of(fitting)):
            raise not_a_number("observation")
        return fitting


def check_count(num_envs: int) -> None:
    if num_envs < 1:
        raise ExperimentError(f"got {num_envs} environments, wanted 1 or more.")


def as_int(sequence: np.random.SeedSequence) -> int:
    """Returns a seed for an environment."""
    return int(sequence.generate_state(1)[0]) >> 2  # below 2^30, so that seed + 1, seed + 2 … stay below 2^31


def _autoreset(env: VectorEnv) -> AutoresetMode:
    """Returns how a VectorEnv resets.

    The environment's attribute takes precedence over its metadata. ale-py writes its mode into the dict that all
    VectorEnv classes share, so that shared dict says nothing about a class.

    Raises:
        ExperimentError: the VectorEnv does not declare its mode, or resets in the step that ends an episode
            (SAME_STEP).
    """
    shared = env.metadata is VectorEnv.metadata
    mode = getattr(env.unwrapped, "autoreset_mode", None) or (None if shared else env.metadata.get("autoreset_mode"))
    if mode is None:
        raise ExperimentError(
            f"{_name(env)} does not say how it resets: give it metadata = "
            '{"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP} if the step after an end is the reset.'
        )
    if AutoresetMode(mode) is AutoresetMode.SAME_STEP:
        raise ExperimentError(
            f"{_name(env)} resets in the step that ends an episode (SAME_STEP), wanted NEXT_STEP: "
            "build it with autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP."
        )
    return AutoresetMode(mode)


def _name(env: Any) -> str:
    return type(env.unwrapped).__name__
