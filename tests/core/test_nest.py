"""Nest: trees to dotted names and back."""

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyverse.core import nest
from tinyverse.core.errors import SpecError

keys = st.text(min_size=1, max_size=4).filter(lambda key: "." not in key and not key.isdigit())
trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=12).map(tuple)
    ),
    max_leaves=14,
)


def test_the_example_of_the_docstring():
    tree = {"pair": (2, 3), "image": 1}
    assert nest.flatten(tree, "observations") == {
        "observations.image": 1,
        "observations.pair.0": 2,
        "observations.pair.1": 3,
    }


@settings(max_examples=100, deadline=None)
@given(trees, keys)
def test_names_alone_restore_the_tree(tree, name):
    flat = nest.flatten(tree, name)
    assert nest.unflatten(flat, name) == tree
    assert nest.leaves(tree) == list(flat.values())


@settings(max_examples=50, deadline=None)
@given(trees)
def test_map_keeps_the_shape_and_pairs_the_leaves(tree):
    doubled = nest.map(lambda x: 2 * x, tree)
    assert nest.leaves(doubled) == [2 * leaf for leaf in nest.leaves(tree)]
    assert nest.map(lambda a, b: b - a, tree, doubled) == tree


def test_tuples_of_more_than_ten_stay_in_order():
    tree = tuple(range(12))
    assert nest.unflatten(nest.flatten(tree, "x"), "x") == tree


def test_names_that_begin_alike_are_kept_apart():
    assert nest.unflatten({"a.x": 1, "ab": 2, "ab.y": 3}, "a") == {"x": 1}
    assert nest.unflatten({"ab": 2}, "a") == ()


@pytest.mark.parametrize("key", ["", "a.b", "0", "12", "²", 3, None, ("a",)])
def test_keys_that_would_be_ambiguous_are_refused(key):
    with pytest.raises(SpecError, match="memory has a key"):
        nest.flatten({key: 1}, "memory")


def test_trees_of_different_shapes_do_not_pair():
    with pytest.raises(ValueError, match="zip"):
        nest.map(lambda a, b: a, (1, 2), (1,))
    with pytest.raises(KeyError):
        nest.map(lambda a, b: a, {"a": 1}, {"b": 1})


def test_of_space_follows_dicts_and_tuples():
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,)))),
            "a": spaces.Dict({"c": spaces.MultiBinary(4)}),
        }
    )
    assert nest.of_space(space, lambda leaf: leaf.shape) == {"a": {"c": (4,)}, "b": ((), (2,))}
    zeros = nest.of_space(space, lambda leaf: np.zeros(leaf.shape))
    fits = nest.map(lambda blank, leaf: blank.shape == np.shape(leaf), zeros, space.sample())
    assert nest.leaves(fits) == [True] * 3
