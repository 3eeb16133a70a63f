"""The command line in tests: what a command left, and what is asked of it. Its fixtures are in conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

CHECKOUT = Path(__file__).parents[2]


class Said(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Tinyverse = Callable[..., Said]


def info(run: Tinyverse) -> dict[str, Any]:
    return json.loads(run("info", "--json").out)


def created(run: Tinyverse, *words: Any) -> dict[str, Any]:
    """A run with weights and nothing learned."""
    run("train", "--minutes", 0, "-q", *words)
    return info(run)


def one_sentence(said: Said, code: int, *parts: str) -> None:
    """That a command refused with this exit code, and one line with these parts, and no traceback."""
    assert said.code == code, said
    lines = [line for line in said.err.splitlines() if " train: update" not in line]
    assert len(lines) == 1 or lines[0].startswith("Usage:"), said.err
    assert "Traceback" not in said.err and not said.out
    for part in parts:
        assert part in lines[-1], lines[-1]


def swap_with_spy(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, returns: Any = None) -> list[Any]:
    """Replaces a function by one that only remembers its arguments."""
    calls: list[Any] = []

    def spy(*arguments: Any, **named: Any) -> Any:
        calls.append((arguments, named))
        return returns

    monkeypatch.setattr(where, name, spy)
    return calls
