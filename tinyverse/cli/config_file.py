"""TOML files for `--config`: settings of the experiment, and options of the commands.

    learning_rate = 1e-3        # settings: the arguments of make_experiment
    [train]                     # options of a verb, as on its command line
    buffer-size = 2000

What stands on the command line goes before the environment (TINYVERSE_TRAIN_BUFFER_SIZE), that before the file, that
before the experiment.
"""

import tomllib
from pathlib import Path
from typing import Any

import click

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import did_you_mean


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings, {verb: options}) of a TOML file; SettingsError if it cannot be read."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    tables = {name: found.pop(name) for name in list(found) if isinstance(found[name], dict)}
    return found, tables


def adopt(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """The callback of `--config`: the file's table of this command becomes the defaults of its options."""
    if path is None:
        return None
    tables, group = read(path)[1], ctx.find_root().command
    verbs = group.list_commands(ctx) if isinstance(group, click.Group) else []
    if strange := [name for name in tables if name not in verbs]:
        raise SettingsError(f"--config {path}: [{strange[0]}] is no verb.{did_you_mean(strange[0], verbs)}")
    names: dict[str, str | None] = {}
    for option in ctx.command.params:
        words = [str(option.name), *(word[2:] for word in option.opts if word.startswith("--"))]
        names |= dict.fromkeys([word.replace("_", "-") for word in words], option.name)
    ctx.default_map = {}
    for word, value in tables.get(ctx.info_name or "", {}).items():
        name = names.get(word.replace("_", "-"))
        if name is None:
            raise SettingsError(f"--config {path}: {ctx.info_name} has no option {word!r}.{did_you_mean(word, names)}")
        ctx.default_map[name] = value
    return path
