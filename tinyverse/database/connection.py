"""Connection: the database of a run, by the URL of its server."""

from __future__ import annotations

import importlib

from tinyverse.core.errors import SettingsError
from tinyverse.database.base import Database
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.signing import seal_of


def open_database(
    url: str, run: str, *, database: str | None = None, name: str = "tinyverse", timeout: float = 5.0
) -> Database:
    """The database of a run: on the Redis server at `url`, or the user's own class called with (url, run).

    Args:
        database: "module:Class" of a `Database` of the user's own.
        name, timeout: as of `RedisDatabase`.

    Raises:
        SettingsError: the run's name, the URL or `database` cannot be used.
    """
    if not database:
        return RedisDatabase(url, run, name=name, timeout=timeout, seal=seal_of(run))
    module, _, attribute = database.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)(url, run)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"--database {database} should be module:Class, called with (url, run): {error}") from error
    if not isinstance(made, Database):
        raise SettingsError(
            f"--database {database} made a {type(made).__name__}; it must inherit tinyverse.database.base.Database."
        )
    return made
