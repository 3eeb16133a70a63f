"""Session: T consecutive steps of one environment, and the spec that all sessions of a run agree on.

    row t          0    1    2    3    4    5
    observations   o0   o1   o2   o3   p0   p1   p2     T + 1 rows; o3 ends its episode, p0 opens the next
    actions        a0   a1   a2   ·    b0   b1          · was ignored by the environment
    rewards        r    r    r    0    r    r
    terminated     –    –    ✓    –    –    –           (or truncated)
    valid          ✓    ✓    ✓    –    ✓    ✓           row 3 is the reset: it did not happen

The reset spends a row (Gymnasium's NEXT_STEP), so the true last observation of an episode is in the sequence.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from tinyverse.core import codec, nest
from tinyverse.core.bounds import Bounds
from tinyverse.core.errors import CodecError, SpecError
from tinyverse.core.text import printable

LONGEST_NAME = 200  # characters of a player's name, which trainers remember

FIELDS: dict[str, int | None] = {  # rows beyond T of a field's leaves; None: the leaves have no time axis
    "observations": 1,  # [T+1, …] per leaf
    "actions": 0,  # [T, …] per leaf
    "rewards": 0,  # [T] float32, raw
    "terminated": 0,  # [T] bool
    "truncated": 0,  # [T] bool
    "valid": 0,  # [T] bool
    "initial_state": None,  # […] per leaf: the agent's recurrent state before row 0, any reset applied
    "extras": 0,  # [T, …] float32 each, a dict: what the agent added
}

STORED = {"valid": "alive", "initial_state": "initial_memory"}  # fields that have another name on the wire and in files
_ROWS_BEYOND = {STORED.get(field, field): rows for field, rows in FIELDS.items()}


def rows_beyond(name: str) -> int | None:
    """`FIELDS` by the dotted name of a leaf."""
    return _ROWS_BEYOND[name.partition(".")[0]]


def field_of(leaves: Mapping[str, Any], name: str) -> nest.Tree:
    """The tree of one of `FIELDS` from leaves by dotted name."""
    tree = nest.unflatten(leaves, STORED.get(name, name))
    return tree or {} if name == "extras" else tree


def flatten(trees: Mapping[str, nest.Tree]) -> dict[str, Any]:
    """The leaves of fields given as trees, by dotted name in the order of `FIELDS`."""
    return {
        name: leaf
        for field in FIELDS
        if field in trees
        for name, leaf in nest.items(trees[field], STORED.get(field, field))
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """T steps of one environment. Synonyms: an unroll (IMPALA), a rollout (PPO), a sequence (R2D2).

    Each of `FIELDS` is an attribute too, a tree as the environment or the agent gave it, built when it is asked for:
    `session.observations["image"]`.

    Attributes:
        arrays: every leaf by its dotted name.
        metadata: who pushed it and as which (player, sequence), the weights that played it (version, update), JSON lists
            of the episodes that ended in it (returns, lengths), human: "1" where a person played.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            raise AttributeError(f"a session has no {name}; its fields are {', '.join(FIELDS)}.")
        return field_of(self.arrays, name)

    def encode(self) -> bytes:
        """Bytes for the wire: safetensors, compressed where it pays."""
        return codec.compress(codec.encode(self.arrays, self.metadata))

    @property
    def source(self) -> str:
        """Who pushed it and as which: "player:sequence". No two sessions of a run have the same."""
        return f"{self.metadata.get('player', '')}:{int(self.metadata['sequence'])}"

    @property
    def human(self) -> bool:
        """Whether a person played it (`play --human`)."""
        return self.metadata.get("human") == "1"

    @property
    def episodes(self) -> list[tuple[float, int]]:
        """(return, length in steps) of each episode that ended in this session."""
        returns, lengths = (self.metadata.get(name, "[]") for name in ("returns", "lengths"))
        if returns == lengths == "[]":  # of most sessions, which are read faster without JSON
            return []
        return list(zip(json.loads(returns), json.loads(lengths), strict=True))


@dataclasses.dataclass(frozen=True)
class SessionSpec:
    """Names, shapes, dtypes and bounds of a run's sessions, published with its weights."""

    fields: dict[str, tuple[tuple[int, ...], np.dtype]]  # dotted name -> (shape, dtype)
    bounds: dict[str, Bounds] = dataclasses.field(default_factory=dict, compare=False)  # of leaves of discrete spaces

    @property
    def length(self) -> int:
        """T, the steps of a session."""
        return self.fields["rewards"][0][0]

    @functools.cached_property
    def nbytes(self) -> int:
        """Bytes of a session's arrays, uncompressed."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.fields.values())

    @functools.cached_property
    def _floats(self) -> list[tuple[str, bool]]:
        """The float arrays, and whether infinity is refused in them: an agent may note −∞ for an action not allowed."""
        names = [name for name, (_, dtype) in self.fields.items() if dtype.kind == "f"]
        return [(name, not name.startswith("extras")) for name in names]

    def to_json(self) -> str:
        limits = {name: bounds.lists() for name, bounds in self.bounds.items()}
        fields = self.fields.items()
        return json.dumps({name: [dtype.str, list(shape), *limits.get(name, ())] for name, (shape, dtype) in fields})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`. Raises SpecError where the text is no spec."""
        try:
            stored = json.loads(text).items()
            fields = {name: (tuple(map(int, shape)), np.dtype(str(dtype)[:20])) for name, (dtype, shape, *_) in stored}
            bounds = {
                name: Bounds.from_lists(limits, fields[name][0][1:]) for name, (_, _, *limits) in stored if limits
            }
            sound = _is_spec(fields)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, SyntaxError, OverflowError):
            sound = False  # dtypes are parsed
        if not sound:
            raise SpecError(f"the run's spec of its sessions is garbled: {text[:80]!r}")
        if any(dtype.kind not in "biuf" for _, dtype in fields.values()):
            raise SpecError("the run's spec has arrays that are neither booleans, integers nor floats.")
        return cls(fields, bounds)

    def difference(self, fields: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
        """One sentence on the first way in which `fields` differ; "" where they do not."""
        if fields == self.fields:
            return ""
        for name, (shape, dtype) in self.fields.items():
            if name not in fields:
                return f"session.{name} is missing, this run's sessions have it."
            if fields[name] != (shape, dtype):
                got_shape, got_dtype = fields[name]
                return f"session.{name} is {got_dtype} {got_shape}, this run's sessions have {dtype} {shape}."
        extra = sorted(set(fields) - set(self.fields))
        return f"session.{extra[0]} is unknown to this run." if extra else ""

    def decode(self, blob: bytes) -> Session:
        """A session from the wire, checked.

        Raises:
            CodecError: the bytes are damaged, or larger than this run's sessions can be.
            SpecError: names, shapes or dtypes differ, a number is not in its space, is infinite (but in extras) or NaN.
        """
        limit = self.nbytes + codec.MAX_HEADER
        arrays, metadata = codec.decode(codec.decompress(blob, max_bytes=limit), max_bytes=limit)
        if wrong := self.difference({name: (array.shape, array.dtype) for name, array in arrays.items()}):
            raise SpecError(wrong)
        for name, strict in self._floats:
            if not (np.isfinite(arrays[name]) if strict else ~np.isnan(arrays[name])).all():
                infinity = " or infinity" if strict else ""
                raise SpecError(f"session.{name} holds NaN{infinity}: learning from it would spoil the weights.")
        for name, bounds in self.bounds.items():
            bounds.check(arrays[name], f"session.{name}")
        if len(metadata.get("player", "")) > LONGEST_NAME:
            raise CodecError(f"the session's player has a name of more than {LONGEST_NAME} characters.")
        for name in ("version", "update", "sequence"):
            codec.whole_number(metadata, name)
        shown = {printable(name): printable(text, codec.MAX_HEADER) for name, text in metadata.items()}
        session = Session(arrays, shown)
        try:
            episodes = session.episodes
            sound = len(episodes) <= self.length and all(_is_episode(*episode) for episode in episodes)
        except (ValueError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise CodecError("the session's metadata has garbled returns or lengths of episodes.")
        return session


def _is_spec(fields: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> bool:
    """Whether all that reads sessions can rely on it. Raises LookupError for a field that sessions do not have."""
    shapes = {name: shape for name, (shape, _) in fields.items()}
    steps, small = shapes["rewards"][0], all(0 <= side < 1 << 40 for shape in shapes.values() for side in shape)
    flags = all(shapes[STORED.get(name, name)] == (steps,) for name in ("rewards", "terminated", "truncated", "valid"))
    rows = all((beyond := rows_beyond(name)) is None or shapes[name][:1] == (steps + beyond,) for name in shapes)
    return 0 < steps < 1 << 24 and small and flags and rows and all(map(str.isprintable, shapes))


def _is_episode(total: Any, length: Any) -> bool:
    return type(total) in (int, float) and abs(total) < 1e300 and type(length) is int and 0 < length < 1 << 53
