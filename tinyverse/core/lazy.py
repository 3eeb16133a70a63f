"""Lazy imports: a package's public names are imported when first used (PEP 562), so that what needs no torch loads none."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def imported(package: str, name: str, modules: Mapping[str, str]) -> Any:
    """The public object `name` of `package`, for the package's `__getattr__`.

    Args:
        modules: public name -> the module of the package that defines it.
    Raises:
        AttributeError: the package has no such name.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
