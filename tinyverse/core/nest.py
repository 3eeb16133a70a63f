"""Nested arrays: an array, or a dict or tuple of them, as Gymnasium's Dict and Tuple spaces give.

Inside the program a tree keeps its nested form; on the wire and in device memory each leaf has one dotted name:

    flatten({"image": x, "pair": (y, z)}, "observations")
    == {"observations.image": x, "observations.pair.0": y, "observations.pair.1": z}

A level whose names are 0, 1, 2 … is a tuple, so names alone restore the tree; a dict may not use such names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tinyverse.core.errors import SpecError

Tree = Any  # a leaf, or a Mapping[str, Tree], or a tuple of Trees


def items(tree: Tree, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, leaf) in a fixed order: dicts by key, tuples by position."""
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
    """The leaves by dotted name."""
    return dict(items(tree, name))


def unflatten(leaves: Mapping[str, Any], name: str) -> Tree:
    """The tree under `name`; `()` when it has no leaves. Inverse of `flatten` (but empty dicts vanish)."""
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
    """Applies `function` to corresponding leaves of trees of one shape."""
    if isinstance(tree, Mapping):
        return {key: map(function, tree[key], *(other[key] for other in others)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(map(function, *parts) for parts in zip(tree, *others, strict=True))
    return function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """The leaves in the order of `items`."""
    return [leaf for _, leaf in items(tree, "")]


def of_space(space: Any, function: Callable[[Any], Any]) -> Tree:
    """A tree shaped like a Gymnasium space: `function` of each leaf space (Dict and Tuple are levels)."""
    parts = getattr(space, "spaces", None) if type(space).__name__ != "OneOf" else None  # OneOf is no product
    if isinstance(parts, Mapping):
        return {key: of_space(part, function) for key, part in parts.items()}
    if isinstance(parts, (tuple, list)):
        return tuple(of_space(part, function) for part in parts)
    return function(space)
