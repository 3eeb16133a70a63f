"""Pool: B games stepped together, whatever they are made of, so that a player knows one shape and one way of resetting.

Autoreset is Gymnasium's NEXT_STEP. The step after a game's end is its reset: the action is ignored, the reward is 0,
the flags are False and the observation is the new episode's first.

    step           0    1    2    3    4
    observations   o1   o2   o3   p0   p1     o3 is the last of its episode, p0 the first of the next
    rewards        r    r    r    0    r
    terminated     –    –    ✓    –    –      (or truncated)
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from tinyverse import nest
from tinyverse.errors import ExperimentError, SpecError

HALVES = (("send", "recv"), ("step_async", "step_wait"))  # how vector environments call the halves of a step


class Step(NamedTuple):
    """What one step of B games gave; the arrays are valid until the next step."""

    observations: nest.Tree  # [B, …] per leaf, of the space's dtype
    rewards: np.ndarray  # [B] float32
    terminated: np.ndarray  # [B] bool
    truncated: np.ndarray  # [B] bool


class Pool(abc.ABC):
    """B games stepped together. Synonym: vector environment.

    Attributes:
        num_games: B.
        observation_space, action_space: the Gymnasium spaces of one game.
        realtime: whether the games go on without waiting for an action, so that whoever plays must not block.
    """

    num_games: int
    observation_space: Any
    action_space: Any
    realtime: bool = False

    @abc.abstractmethod
    def reset(self, seed: int | None = None) -> nest.Tree:
        """Begins an episode in every game; equal seeds begin equal games. Returns observations [B, …] per leaf."""

    @abc.abstractmethod
    def step(self, actions: nest.Tree) -> Step:
        """Steps every game, and resets those that ended at the step before.

        Args:
            actions: [B, …] per leaf; Box actions are clipped to the space's bounds.
        Raises:
            SpecError: actions or observations differ from their space in shape or dtype.
        """

    def send(self, actions: nest.Tree) -> None:
        """Begins a step, whose result `receive` gives; where nothing steps in the background, it is made there."""
        self._sent = actions

    def receive(self) -> Step:
        """The result of the step that `send` began."""
        return self.step(self._sent)

    def close(self) -> None:  # noqa: B027
        """Closes the games."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_games} games, {self.observation_space} -> {self.action_space})"


class GamePool(Pool):
    """Single environments, stepped one by one in this process. They may speak Gymnasium or the old gym."""

    def __init__(self, make_env: Callable[[], Any], num_games: int, *, realtime: bool = False) -> None:
        _check_count(num_games)
        self._envs = [_checked(make_env()) for _ in range(num_games)]
        self.num_games, self.realtime = num_games, realtime
        self.observation_space, self.action_space = self._envs[0].observation_space, self._envs[0].action_space
        self._spec = _spec(self.observation_space, ())
        self._observations = nest.map(lambda leaf: np.zeros((num_games, *leaf.shape), leaf.dtype), self._spec)
        self._door = _Door(self.action_space, num_games)
        self._rewards = np.zeros(num_games, np.float32)
        self._terminated, self._truncated = np.zeros(num_games, bool), np.zeros(num_games, bool)
        self._ended = [False] * num_games

    def reset(self, seed: int | None = None) -> nest.Tree:
        for game, sequence in enumerate(np.random.SeedSequence(seed).spawn(self.num_games)):
            self._begin(game, _as_int(sequence))
        self._ended = [False] * self.num_games
        return self._observations

    def step(self, actions: nest.Tree) -> Step:
        columns = self._door.columns(actions)
        rows = [self._begin(game) if ended else self._step(game, columns) for game, ended in enumerate(self._ended)]
        self._rewards[:], self._terminated[:], self._truncated[:] = zip(*rows, strict=True)
        self._ended = (self._terminated | self._truncated).tolist()
        return Step(self._observations, self._rewards, self._terminated, self._truncated)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _begin(self, game: int, seed: int | None = None) -> tuple[float, bool, bool]:
        self._store(game, _reset(self._envs[game], self._spec, seed))
        return 0.0, False, False

    def _step(self, game: int, columns: nest.Tree) -> tuple[float, bool, bool]:
        result = self._envs[game].step(nest.map(lambda column: column[game], columns))
        observation, reward, terminated, truncated = _four(result)
        self._store(game, observation)
        return _number(reward), terminated, truncated

    def _store(self, game: int, observation: nest.Tree) -> None:
        def store(wanted: _Array, batch: np.ndarray, part: Any) -> None:
            batch[game] = _fit_leaf(wanted, part)

        try:
            nest.map(store, self._spec, self._observations, observation)
        except (LookupError, TypeError, ValueError):
            raise _unlike(observation) from None


class VectorPool(Pool):
    """A native Gymnasium VectorEnv whose autoreset is NEXT_STEP or DISABLED.

    A DISABLED one steps all its games at once and none that is over, so a game is reset twice: before the step, which
    lets it be stepped, and after, which undoes that step. Each episode costs one reset and one step more.
    """

    def __init__(self, env: VectorEnv, *, realtime: bool = False) -> None:
        self._resets = _autoreset(env) is AutoresetMode.DISABLED
        self._env, self.num_games, self.realtime = env, env.num_envs, realtime
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self._spec = _spec(self.observation_space, (self.num_games,))
        self._door = _Door(self.action_space, self.num_games)
        self._ended = np.zeros(self.num_games, bool)
        # of the class: a wrapper passes such names on to the environment inside, past what it does itself
        halves = [names for names in HALVES if hasattr(type(env), names[0]) and not self._resets]
        self._halves = tuple(getattr(env, name) for name in halves[0]) if halves else None

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._ended = np.zeros(self.num_games, bool)
        # hashed, because vector environments seed their games seed, seed + 1 …: neighbouring players would share games
        return _fit(self._spec, self._env.reset(seed=_as_int(np.random.SeedSequence(seed)))[0])

    def step(self, actions: nest.Tree) -> Step:
        self.send(actions)
        return self.receive()

    def send(self, actions: nest.Tree) -> None:
        self._sent = self._door.arrays(actions)
        if self._halves is not None:
            self._halves[0](self._sent)

    def receive(self) -> Step:
        again = self._resets and bool(self._ended.any())
        if again:
            self._reset_ended()
        result = self._env.step(self._sent) if self._halves is None else self._halves[1]()
        observations, rewards, terminated, truncated, _ = result
        rewards = np.array(rewards, np.float32)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        if again:
            observations = self._reset_ended()
            rewards[self._ended], terminated[self._ended], truncated[self._ended] = 0.0, False, False
        self._ended = terminated | truncated
        return Step(_fit(self._spec, observations), rewards, terminated, truncated)

    def close(self) -> None:
        self._env.close()

    def _reset_ended(self) -> nest.Tree:
        return self._env.reset(options={"reset_mask": self._ended.copy()})[0]


def pool_of(thing: Any, num_games: int, *, realtime: bool = False) -> Pool:
    """A pool of `num_games` games of a Pool, a VectorEnv, or a function that makes either or a single environment.

    Raises:
        ExperimentError: it is none of these, or has another number of games.
    """
    _check_count(num_games)
    made = thing() if callable(thing) else thing
    if isinstance(made, VectorEnv):
        made = VectorPool(made)
    if isinstance(made, Pool):
        made.realtime = made.realtime or realtime
        return _counted(made, num_games)
    if not callable(thing):
        raise ExperimentError(
            f"got {_article(thing)}, wanted a function that makes an environment, or a Gymnasium VectorEnv."
        )
    first = [made]
    return GamePool(lambda: first.pop() if first else thing(), num_games, realtime=realtime)


class _Door:
    """Brings actions [B, …] to the shape, dtype and bounds of a space."""

    def __init__(self, space: Any, num_games: int) -> None:
        self._spaces = nest.of_space(space, lambda leaf: leaf)
        self._num_games = num_games
        _spec(space, ())

    def arrays(self, actions: nest.Tree) -> nest.Tree:
        """One array [B, …] per leaf, as a VectorEnv takes them."""
        try:
            return nest.map(self._leaf, self._spaces, actions)
        except (LookupError, TypeError, ValueError) as error:
            raise SpecError(
                f"the agent's actions are not built like the action space {self._spaces}: {error!r}."
            ) from None

    def columns(self, actions: nest.Tree) -> nest.Tree:
        """One sequence of B per leaf, whose elements single environments take: int for Discrete."""
        return nest.map(
            lambda space, leaf: leaf.tolist() if _is_discrete(space) else leaf, self._spaces, self.arrays(actions)
        )

    def _leaf(self, space: Any, actions: Any) -> np.ndarray:
        array, shape = np.asarray(actions), (self._num_games, *space.shape)
        if array.shape != shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
            raise SpecError(
                f"the agent's actions are {array.dtype}{list(array.shape)}, the games want {space.dtype}{list(shape)}."
            )
        if hasattr(space, "low") and hasattr(space, "high"):
            array = np.clip(array, space.low, space.high)
        return array.astype(space.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class _Array:
    """Shape and dtype of one leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def _spec(space: Any, batch: tuple[int, ...]) -> nest.Tree:
    """The arrays of a space, with `batch` axes before them."""

    def leaf(part: Any) -> _Array:
        dtype = getattr(part, "dtype", None)
        if getattr(part, "shape", None) is None or dtype is None or np.dtype(dtype).kind not in "biuf":
            raise ExperimentError(
                f"{part} holds no arrays of numbers. Wrap the environment so that its spaces are Box, Discrete, Dict …"
            )
        return _Array(batch + tuple(part.shape), np.dtype(dtype))

    return nest.of_space(space, leaf)


def _fit(spec: nest.Tree, observation: nest.Tree) -> nest.Tree:
    """The observation as arrays; a SpecError if they differ from `spec`."""
    try:
        return nest.map(_fit_leaf, spec, observation)
    except (LookupError, TypeError, ValueError):
        raise _unlike(observation) from None


def _fit_leaf(wanted: _Array, part: Any) -> np.ndarray:
    array = np.asarray(part)
    if array.shape == wanted.shape and array.dtype == wanted.dtype:
        return array
    if array.shape == wanted.shape and np.can_cast(array.dtype, wanted.dtype, "same_kind"):
        return array.astype(wanted.dtype)  # float64 where float32 was declared: common, and harmless
    got = _Array(array.shape, array.dtype)
    raise SpecError(f"the environment's observation is {got}, its observation_space is {wanted}. Change one of them.")


def _unlike(observation: nest.Tree) -> SpecError:
    return SpecError(
        f"the environment's observation is {_article(observation)} that is not built like its observation_space: "
        "wanted arrays, for a Dict a dict with its keys, for a Tuple a tuple of its length."
    )


def _number(reward: Any) -> float:
    if isinstance(reward, (float, int)) or not np.ndim(reward):
        return float(reward)
    raise SpecError(f"the environment's reward has shape {list(np.shape(reward))}, wanted one number. Return a float.")


def _reset(env: Any, spec: nest.Tree, seed: int | None) -> nest.Tree:
    """The first observation of an episode, from Gymnasium's reset or old gym's."""
    if seed is None:
        result = env.reset()
    elif _takes_seed(env):
        result = env.reset(seed=seed)
    else:
        env.seed(seed)
        result = env.reset()
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)
    return result[0] if pair and not _is_like(spec, result) else result


def _takes_seed(env: Any) -> bool:
    parameters = inspect.signature(getattr(env, "unwrapped", env).reset).parameters.values()
    return any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters) or not hasattr(env, "seed")


def _is_like(spec: nest.Tree, thing: Any) -> bool:
    """Whether an (observation, info) pair could as well be an observation of a Tuple space."""
    try:
        return isinstance(spec, tuple) and _fit(spec, thing) is not None
    except SpecError:
        return False


def _four(result: Any) -> tuple[nest.Tree, Any, bool, bool]:
    """Observation, reward, terminated and truncated, from Gymnasium's step or old gym's."""
    if len(result) == 5:
        return result[:4]
    observation, reward, done, info = result
    truncated = bool(done and info.get("TimeLimit.truncated", False))
    return observation, reward, bool(done and not truncated), truncated


def _autoreset(env: VectorEnv) -> AutoresetMode:
    """How a VectorEnv resets; an ExperimentError unless rows can be made of it.

    The attribute goes before the metadata: ale-py writes its mode into the dict that all VectorEnv classes share, which
    for the same reason declares nothing.
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


def _checked(env: Any) -> Any:
    if all(hasattr(env, name) for name in ("reset", "step", "observation_space", "action_space")):
        return env
    raise ExperimentError(
        f"make_env gave {_article(env)}, wanted a gymnasium.Env (reset, step, observation_space, action_space)."
    )


def _counted(pool: Pool, num_games: int) -> Pool:
    if pool.num_games != num_games:
        raise ExperimentError(
            f"got {pool.num_games} games, wanted {num_games}: build the vector environment with num_envs={num_games}."
        )
    return pool


def _check_count(num_games: int) -> None:
    if num_games < 1:
        raise ExperimentError(f"got {num_games} games, wanted 1 or more.")


def _is_discrete(space: Any) -> bool:
    return hasattr(space, "n") and space.shape == ()


def _as_int(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1)[0]) >> 2  # room below 2^31 for seed + 1, seed + 2 …


def _name(env: Any) -> str:
    return type(env.unwrapped).__name__


def _article(thing: Any) -> str:
    name = type(thing).__name__
    return "None" if thing is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
