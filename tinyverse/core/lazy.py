"""Lazy imports: a package imports its public names when they are first used (PEP 562).

Commands such as `info` and `--help` therefore start without torch.
"""

import importlib
from collections.abc import Mapping
from typing import Any


def imported(package: str, name: str, modules: Mapping[str, str]) -> Any:
    """Returns the public object `name` of `package`, for its `__getattr__`.

    Args:
        modules: public name -> the module of the package that defines it.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
