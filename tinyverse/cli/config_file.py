"""TOML files for `--config`: settings of the experiment, and options of the commands.

    learning_rate = 1e-3        # settings: the arguments of make_experiment
    [train]                     # options of a verb, as on its command line
    buffer-size = 2000

What stands on the command line goes before the environment (TINYVERSE_TRAIN_BUFFER_SIZE), that before the file, that
before the experiment.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import did_you_mean


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(settings, {verb: options}) of a TOML file.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"--config {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    tables = {name: value for name, value in found.items() if isinstance(value, dict)}
    return {name: value for name, value in found.items() if name not in tables}, tables


def adopt(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """The callback of `--config`: the file's table of this command becomes the defaults of its options.

    Raises:
        SettingsError: the file cannot be read, or has a table of no verb, or an option that the verb does not have.
    """
    if path is None:
        return None
    tables, group = read(path)[1], ctx.find_root().command
    verbs = group.list_commands(ctx) if isinstance(group, click.Group) else []
    if strange := [name for name in tables if name not in verbs]:
        raise SettingsError(f"--config {path}: [{strange[0]}] is no verb.{did_you_mean(strange[0], verbs)}")
    words = {
        word.removeprefix("--"): option.name
        for option in ctx.command.params
        for word in (option.name or "", *option.opts)
        if not word.startswith("-") or word.startswith("--")
    }
    ctx.default_map = {}
    for word, value in tables.get(ctx.info_name or "", {}).items():
        if word.replace("_", "-") not in words and word not in words:
            raise SettingsError(f"--config {path}: {ctx.info_name} has no option {word!r}.{did_you_mean(word, words)}")
        ctx.default_map[words.get(word) or words[word.replace("_", "-")]] = value
    return path
