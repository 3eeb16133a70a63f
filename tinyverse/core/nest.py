"""Nested arrays: an array, or a dict or tuple of nested arrays, like samples of Gymnasium's Dict and Tuple spaces.

`flatten` gives each leaf a dotted name, which sessions use on the wire and in device memory:

    flatten({"image": x, "pair": (y, z)}, "observations")
    == {"observations.image": x, "observations.pair.0": y, "observations.pair.1": z}

Names alone restore the tree: a level with the names 0, 1, 2 … is a tuple. Keys of a dict must therefore not be numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tinyverse.core.errors import SpecError

Tree = Any  # a leaf, or a Mapping[str, Tree], or a tuple of Trees


def items(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, leaf) in a fixed order: dicts by sorted key, tuples by position.

    Raises:
        SpecError: a key is no string, is empty, is a number or contains a dot.
    """
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            if not isinstance(key, str) or not key or "." in key or key.isdigit():
                raise SpecError(
                    f"{name} has a key {key!r}; keys must be non-empty strings without dots that are not numbers. Rename it."
                )
            yield from items(tree[key], f"{name}.{key}")
    elif isinstance(tree, tuple):
        for position, part in enumerate(tree):
            yield from items(part, f"{name}.{position}")
    else:
        yield name, tree


def flatten(tree: Tree, name: str) -> dict[str, Any]:
    """Returns the leaves by dotted name, in the order of `items`."""
    return dict(items(tree, name))


def unflatten(leaves: Mapping[str, Any], name: str) -> Tree:
    """Returns the tree under `name`, `()` if it has no leaves. Inverse of `flatten`, except that empty dicts vanish."""
    if name in leaves:
        return leaves[name]
    start = name + "."
    inside = {key[len(start) :].partition(".")[0] for key in leaves if key.startswith(start)}
    if not inside:
        return ()
    if all(key.isdigit() for key in inside):
        return tuple(unflatten(leaves, f"{name}.{key}") for key in sorted(inside, key=int))
    return {key: unflatten(leaves, f"{name}.{key}") for key in sorted(inside)}


def map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Applies `function` to corresponding leaves of trees of the same structure and returns the tree of results."""
    if isinstance(tree, Mapping):
        return {key: map(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(map(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def assign(arrays: Tree, index: Any, values: Tree) -> None:
    """Writes the values at `index` of the arrays."""
    map(lambda array, value: array.__setitem__(index, value), arrays, values)


def leaves(tree: Tree) -> list[Any]:
    """Returns the leaves in the order of `items`."""
    return [leaf for _, leaf in items(tree, "")]


def of_space(space: Any, function: Callable[[Any], Any]) -> Tree:
    """Returns a tree with the structure of a Gymnasium space, whose levels are Dict and Tuple: `function` of each leaf."""
    parts = getattr(space, "spaces", None) if type(space).__name__ != "OneOf" else None  # OneOf: one of its parts
    if isinstance(parts, Mapping):
        return {key: of_space(part, function) for key, part in parts.items()}
    if isinstance(parts, (tuple, list)):
        return tuple(of_space(part, function) for part in parts)
    return function(space)
