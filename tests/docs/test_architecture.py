"""docs/architecture.md names functions that exist."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"\b([a-z]+/[a-z_]+)\.((?:[A-Z]\w+\.)?(?!(?:py|md)\b)[a-z_]\w+)", PAGE)))


def test_the_flows_name_functions() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_every_function_of_the_flows_exists(module: str, name: str) -> None:
    found = importlib.import_module("tinyverse." + module.replace("/", "."))
    assert callable(functools.reduce(getattr, name.split("."), found))
