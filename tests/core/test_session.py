"""Session and SessionSpec: what crosses the wire is what was played, or it is refused by name."""

import json

import numpy as np
import pytest
import zstandard
from gymnasium import spaces

from tests.helpers.counting import CountingAgent, CountingEnv
from tinyverse.agents.agent import Agent, RandomAgent
from tinyverse.core import codec, nest
from tinyverse.core.errors import CodecError, RunConflict, SpecError
from tinyverse.core.run_config import check_spec
from tinyverse.core.session import FIELDS, STORED, Session, SessionSpec, flatten
from tinyverse.experiment.experiment import session_spec

T = 5
METADATA = {"player": "p", "sequence": "3", "version": "2", "update": "20", "returns": "[1.5, -2]", "lengths": "[3, 1]"}


def counting_spec(nested=True):
    env = CountingEnv(nested)
    return session_spec(env.observation_space, env.action_space, CountingAgent(None, env.action_space), T)


def session_of(spec, seed=0, metadata=METADATA):
    random = np.random.default_rng(seed)
    arrays = {}
    for name, (shape, dtype) in spec.fields.items():
        numbers = random.integers(0, 2, shape) if dtype.kind == "b" else random.normal(size=shape) * 100
        if (bounds := spec.bounds.get(name)) is not None:
            numbers = random.integers(bounds.low, bounds.high + 1, shape)
        arrays[name] = np.asarray(numbers).astype(dtype)
    return Session(arrays, metadata)


def test_the_spec_of_nested_spaces():
    assert counting_spec().fields == {
        "observations.clock": ((6, 3), np.dtype("i4")),
        "observations.pair.0": ((6,), np.dtype("i8")),
        "observations.pair.1": ((6, 2, 1), np.dtype("f4")),
        "actions.button": ((5,), np.dtype("i8")),
        "actions.stick": ((5, 2), np.dtype("f4")),
        "rewards": ((5,), np.dtype("f4")),
        "terminated": ((5,), np.dtype("?")),
        "truncated": ((5,), np.dtype("?")),
        "alive": ((5,), np.dtype("?")),
        "initial_memory": ((), np.dtype("i8")),
        "extras.count": ((5,), np.dtype("f4")),
        "extras.saw": ((5, 3), np.dtype("f4")),
        "extras.weight": ((5,), np.dtype("f4")),
    }
    assert counting_spec().length == T


def test_the_spec_of_plain_spaces_and_an_agent_without_anything():
    spec = session_spec(
        spaces.Box(0, 255, (4, 4), np.uint8), spaces.Discrete(2), RandomAgent(None, spaces.Discrete(2)), 3
    )
    assert list(spec.fields) == ["observations", "actions", "rewards", "terminated", "truncated", "alive"]
    assert spec.fields["observations"] == ((4, 4, 4), np.dtype("u1"))
    assert spec.nbytes == 4 * 16 + 3 * 8 + 3 * 4 + 3 * 3


@pytest.mark.parametrize(
    "space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"a": spaces.Text(5)})]
)
def test_spaces_without_a_shape_are_refused(space):
    with pytest.raises(SpecError, match="no fixed shape"):
        session_spec(space, spaces.Discrete(2), RandomAgent(None, spaces.Discrete(2)), 3)


@pytest.mark.parametrize("nested", [False, True])
def test_round_trip(nested):
    spec = counting_spec(nested)
    session = session_of(spec)
    got = spec.decode(session.encode())
    assert got.metadata == METADATA and got.episodes == [(1.5, 3), (-2, 1)]
    assert got.arrays.keys() == session.arrays.keys()
    for name, array in session.arrays.items():
        np.testing.assert_array_equal(got.arrays[name], array)
        assert got.arrays[name].dtype == array.dtype
    if nested:
        assert isinstance(got.observations["pair"], tuple) and got.actions.keys() == {"button", "stick"}


def test_an_agent_without_extras_or_state_gets_back_an_empty_dict():
    space = spaces.Discrete(2)
    spec = session_spec(space, space, RandomAgent(None, space), T)
    got = spec.decode(session_of(spec).encode())
    assert got.extras == {} and got.initial_state == ()


def test_a_state_of_several_leaves():
    class Remembering(Agent):
        def initial_state(self, n):
            return {"h": np.zeros((n, 4), "f4"), "c": (np.zeros((n, 2), "f4"), np.zeros(n, "u1"))}

        def act(self, observations, state, is_first, greedy=False):
            return np.zeros(len(is_first), "i8"), state, {}

    spec = session_spec(spaces.Discrete(2), spaces.Discrete(2), Remembering(), T)
    states = {name: field for name, field in spec.fields.items() if name.startswith("initial_memory")}
    assert states == {
        "initial_memory.h": ((4,), np.dtype("f4")), "initial_memory.c.0": ((2,), np.dtype("f4")), "initial_memory.c.1": ((), np.dtype("u1"))
    }  # fmt: skip
    session = session_of(spec)
    got = spec.decode(session.encode()).initial_state
    assert got["c"][1] == session.initial_state["c"][1] and isinstance(got["c"], tuple)


def changed(name, change):
    arrays = session_of(counting_spec()).arrays
    arrays = change(arrays) if name is None else {**arrays, name: change(arrays[name])}
    return codec.encode(arrays, METADATA)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (
            "rewards",
            lambda x: x[:, None],
            r"session\.rewards is float32 \(5, 1\), this run's sessions have float32 \(5,\)\.",
        ),
        ("rewards", lambda x: x[:-1], r"session\.rewards is float32 \(4,\)"),
        ("rewards", lambda x: x.astype("f8"), r"session\.rewards is float64"),
        ("rewards", lambda x: np.full_like(x, np.nan), r"session\.rewards holds NaN or infinity"),
        (
            "rewards",
            lambda x: np.where(np.arange(T) == 4, np.inf, x).astype("f4"),
            r"session\.rewards holds NaN or infinity",
        ),
        ("alive", lambda x: x.astype("u1"), r"session\.alive is uint8"),
        ("initial_memory", lambda x: x[None], r"session\.initial_memory is int64 \(1,\)"),
        ("observations.pair.1", lambda x: x.reshape(6, 1, 2), r"session\.observations\.pair\.1 is"),
        (
            None,
            lambda a: {k: v for k, v in a.items() if k != "observations.clock"},
            r"session\.observations\.clock is missing",
        ),
        (None, lambda a: {**a, "zz": a["rewards"], "extras.more": a["rewards"]}, r"session\.extras\.more is unknown"),
        (None, lambda a: {}, r"session\.observations\.clock is missing"),
    ],
)
def test_what_differs_is_named(name, change, sentence):
    with pytest.raises(SpecError, match=sentence):
        counting_spec().decode(changed(name, change))


def test_the_first_of_several_differences_is_named():
    spec = counting_spec()
    arrays = {name: array[None] for name, array in session_of(spec).arrays.items()}
    first = next(iter(spec.fields))
    with pytest.raises(SpecError, match=rf"session\.{first} "):
        spec.decode(codec.encode(arrays, METADATA))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[
            (name, text)
            for name in ("sequence", "version", "update")
            for text in (None, "", "x", "1.5", "-1", "9" * 30, "²")
        ],
        *[
            ("returns", text)
            for text in (
                "",
                "x",
                "[1]",
                "[1, 2, 3]",
                '"ab"',
                '["a", "b"]',
                "[null, 1]",
                "[true, 1]",
                "[NaN, 1]",
                "{}",
                "7",
            )
        ],
        *[
            ("returns", text)
            for text in (
                "[Infinity, 1]",
                "[[1], [2]]",
                "[1e999, 1]",
                f"[{'9' * 4000}, 1]",
                "[" * 30_000,
                '{"a": 1, "b": 2}',
            )
        ],
        *[
            ("lengths", text)
            for text in (None, "[1]", "[1.5, 1]", "[0, 1]", "[-1, 1]", f"[{'9' * 400}, 1]", "[null, 1]", '["1", "1"]')
        ],
    ],
)
def test_garbled_metadata_is_refused(name, text):
    spec = counting_spec()
    metadata = {key: value for key, value in METADATA.items() if key != name or text is not None}
    if text is not None:
        metadata[name] = text
    with pytest.raises(CodecError):
        spec.decode(session_of(spec, metadata=metadata).encode())


def test_what_would_spoil_a_trainer_is_refused():
    """NaN in anything it computes with, infinity in all but extras, or names that it would have to remember."""
    spec = counting_spec()
    for name, (_, dtype) in spec.fields.items():
        session = session_of(spec)
        if dtype.kind != "f" or name == "rewards":
            continue
        leaf = session.arrays[name]
        for number, fits in ((np.inf, name.startswith("extras")), (np.nan, False)):
            arrays = {**session.arrays, name: np.full_like(leaf, number)}
            blob = codec.encode(arrays, METADATA)
            if fits:
                spec.decode(blob)
            else:
                with pytest.raises(SpecError, match=f"{name} holds NaN"):
                    spec.decode(blob)
    with pytest.raises(CodecError, match="200 characters"):
        spec.decode(session_of(spec, metadata={**METADATA, "player": "p" * 201}).encode())


def test_a_session_cannot_have_ended_more_episodes_than_it_has_steps():
    spec = counting_spec()
    for count, fits in ((T, True), (T + 1, False)):
        metadata = {**METADATA, "returns": json.dumps([0] * count), "lengths": json.dumps([1] * count)}
        blob = session_of(spec, metadata=metadata).encode()
        if fits:
            assert len(spec.decode(blob).episodes) == count
        else:
            with pytest.raises(CodecError, match="garbled"):
                spec.decode(blob)


def test_episodes_may_be_left_out():
    spec = counting_spec()
    metadata = {key: METADATA[key] for key in ("sequence", "version", "update")}
    assert spec.decode(session_of(spec, metadata=metadata).encode()).episodes == []


def test_what_cannot_be_a_session_of_this_run_is_never_unpacked():
    spec = counting_spec()
    for bomb in (zstandard.compress(bytes(1 << 24)), codec.encode({"rewards": np.zeros(1 << 20)})):
        with pytest.raises(CodecError, match="allowed here"):
            spec.decode(bomb)


@pytest.mark.parametrize("packed", [False, True])
def test_each_flipped_byte_is_refused_or_a_session(packed):
    spec = counting_spec()
    session = session_of(spec)
    if packed:
        session = Session({name: x * 0 if name[0] == "o" else x for name, x in session.arrays.items()}, METADATA)
    blob = codec.encode(session.arrays, METADATA)
    blob = zstandard.compress(blob) if packed else blob
    outcomes = {"session": 0, "refused": 0}
    for place in range(len(blob)):
        for flip in (1, 0x20, 0x80):
            try:
                got = spec.decode(blob[:place] + bytes([blob[place] ^ flip]) + blob[place + 1 :])
                assert spec.difference({name: (x.shape, x.dtype) for name, x in got.arrays.items()}) == ""
                outcomes["session"] += 1
            except (CodecError, SpecError):
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize("packed", [False, True])
def test_each_truncation_is_refused(packed):
    spec = counting_spec()
    blob = codec.encode(session_of(spec).arrays, METADATA)
    blob = zstandard.compress(blob) if packed else blob
    for end in range(len(blob)):
        with pytest.raises((CodecError, SpecError)):
            spec.decode(blob[:end])
    with pytest.raises(CodecError):
        spec.decode(blob + b"\0")


def test_the_spec_goes_through_json():
    spec = counting_spec()
    again = SessionSpec.from_json(spec.to_json())
    assert again == spec and again.difference(spec.fields) == "" and again.length == T


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "7", "null", '{"x": 1}', '{"x": []}', '{"x": ["<f4"]}', '{"x": ["<f4", 3]}', '{"x": ["no", [3]]}', '{"x": ["<f4", ["a"]]}',
     '{"x": ["O", [3]]}', '{"x": ["f4,O", [3]]}', '{"x": ["<U3", [3]]}', '{"x": ["|V8", [3]]}', '{"x": [null, [3]]}', "[" * 20_000],
)  # fmt: skip
def test_a_garbled_spec_is_refused(text):
    with pytest.raises(SpecError, match="the run's spec"):
        SessionSpec.from_json(text)


def atari_like(observations, dtype):
    spec = session_spec(
        spaces.Box(0, 255, (84, 84), dtype), spaces.Discrete(6), RandomAgent(None, spaces.Discrete(6)), 20
    )
    session = session_of(spec)
    return spec, Session({**session.arrays, "observations": observations.astype(dtype)}, METADATA)


def test_frames_shrink_and_noise_does_not():
    y, x = np.mgrid[:84, :84]
    ball = [((y - 4 * t) ** 2 + (x - 3 * t) ** 2 < 20) * 236 + 20 * (y > 70) for t in range(21)]
    spec, session = atari_like(np.stack(ball), np.uint8)
    assert spec.nbytes / len(session.encode()) > 10
    np.testing.assert_array_equal(spec.decode(session.encode()).observations, session.observations)
    spec, session = atari_like(np.random.default_rng(0).standard_normal((21, 84, 84)), np.float32)
    assert session.encode()[:4] != codec.ZSTD_MAGIC and len(session.encode()) > spec.nbytes


def test_each_field_is_an_attribute_and_nothing_else_is():
    session = session_of(counting_spec())
    for name in FIELDS:
        tree, stored = getattr(session, name), STORED.get(name, name)
        assert nest.flatten(tree, stored) == {
            key: x for key, x in session.arrays.items() if key.split(".")[0] == stored
        }
    with pytest.raises(AttributeError, match=r"has no reward; its fields are observations, actions"):
        _ = session.reward


def test_trees_are_flattened_in_the_order_of_the_fields():
    session = session_of(counting_spec())
    trees = {name: getattr(session, name) for name in reversed(FIELDS)}
    assert list(flatten(trees)) == list(session.arrays)


# what is not in a space, though shape and dtype are right

DISCRETE = {  # a space, and numbers that are not in it
    "discrete": (spaces.Discrete(3), [-1, 3, 2**62]),
    "start": (spaces.Discrete(3, start=-5), [-6, -2, 0]),
    "small": (spaces.Discrete(3, dtype=np.int8), [-1, 127]),
    "multi": (spaces.MultiDiscrete([3, 2], start=[0, 7]), [[3, 7], [0, 6], [0, 9], [-1, 7]]),
    "grid": (spaces.MultiDiscrete([[2, 2], [2, 9]]), [[[0, 0], [0, 9]], [[0, 2], [0, 0]]]),
    "binary": (spaces.MultiBinary(2), [[0, 2], [-1, 1]]),
}


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("field", ["observations", "actions"])
def test_a_number_outside_its_discrete_space_is_refused_wherever_it_stands(kind, field):
    space, wrong = DISCRETE[kind]
    spec = session_spec(space, space, RandomAgent(None, space), T)
    assert spec == SessionSpec.from_json(spec.to_json())
    assert SessionSpec.from_json(spec.to_json()).bounds.keys() == spec.bounds.keys() == {"observations", "actions"}
    check_spec("run", {"spec": spec.to_json()}, spec)
    session = session_of(spec)
    assert spec.decode(session.encode())
    for number in wrong:
        for row in (0, -1):
            arrays = {**session.arrays, field: session.arrays[field].copy()}
            arrays[field][row] = number
            with pytest.raises(SpecError, match=rf"session\.{field} holds .* not in its space"):
                spec.decode(Session(arrays, METADATA).encode())


def test_specs_of_the_first_versions_have_no_bounds_and_are_read():
    space = spaces.Discrete(3)
    spec = session_spec(space, space, RandomAgent(None, space), T)
    old = SessionSpec.from_json(
        json.dumps({name: [dtype.str, list(shape)] for name, (shape, dtype) in spec.fields.items()})
    )
    assert old == spec and not old.bounds
    check_spec("run", {"spec": old.to_json()}, spec)
    check_spec("run", {"spec": spec.to_json()}, old)


def test_who_has_other_bounds_cannot_join():
    ours, theirs = (session_spec(space, space, RandomAgent(None, space), T) for space in map(spaces.Discrete, (6, 18)))
    with pytest.raises(RunConflict, match=r"session\.\w+ is 0 to 17, this run's sessions have 0 to 5"):
        check_spec("run", {"spec": ours.to_json()}, theirs)


@pytest.mark.parametrize(
    "limits", [[0], [0, 1, 2], [0.5, 2], ["a", "b"], [[0, 1], [1, 2]], [[], []], [0, 10**30], [None, None], [{}, {}]]
)
def test_garbled_bounds_are_refused(limits):
    with pytest.raises(SpecError, match="garbled"):
        SessionSpec.from_json(json.dumps({"rewards": ["<f4", [5]], "actions": ["<i8", [5, 3], *limits]}))


@pytest.mark.parametrize("field", ["actions", "initial_memory.h"])
def test_infinity_is_refused_as_nan_is_but_in_extras(field):
    class Remembering(RandomAgent):
        def initial_state(self, n):
            return {"h": np.zeros((n, 4), "f4")}

        def state_arrays(self, state):
            return state

        def act(self, observations, state, is_first, greedy=False):
            return np.zeros((len(is_first), 2), "f4"), state, {"logits": np.zeros((len(is_first), 3), "f4")}

    box = spaces.Box(-1, 1, (2,))
    spec = session_spec(box, box, Remembering(None, box), T)
    arrays = session_of(spec).arrays
    arrays["extras.logits"][0] = -np.inf
    assert spec.decode(Session(arrays, METADATA).encode())
    arrays[field][0] = np.inf
    with pytest.raises(SpecError, match=f"{field} holds NaN or infinity"):
        spec.decode(Session(arrays, METADATA).encode())
