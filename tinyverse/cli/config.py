"""Configuring: TOML files for `--config`, and the verb `config`, which says of every value where it comes from.

    learning_rate = 1e-3        # settings: the arguments of make_experiment
    [train]                     # options of a verb, as on its command line
    buffer-size = 2000

What stands on the command line goes before the environment (TINYVERSE_TRAIN_BUFFER_SIZE), that before the file, that
before the experiment.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from tinyverse.core.errors import SettingsError
from tinyverse.core.text import did_you_mean

if TYPE_CHECKING:
    from tinyverse.cli.context import Asked

HIDDEN = ("config", "options", "password", "redis")  # where the values come from, and secrets


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


def adopt(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """The callback of `--config`: the file's table of this verb becomes the defaults of its options.

    Raises:
        SettingsError: the file cannot be read, or has a table of no verb, or an option that the verb does not have.
    """
    if path is None:
        return None
    tables, group = read(path)[1], context.find_root().command
    verbs = list(group.commands) if isinstance(group, click.Group) else []
    if strange := [name for name in tables if name not in verbs]:
        raise SettingsError(f"--config {path}: [{strange[0]}] is no verb.{did_you_mean(strange[0], verbs)}")
    words = {
        word.removeprefix("--"): option.name
        for option in context.command.params
        for word in (option.name or "", *option.opts)
        if not word.startswith("-") or word.startswith("--")
    }
    context.default_map = {}
    for word, value in tables.get(context.info_name or "", {}).items():
        if word.replace("_", "-") not in words and word not in words:
            raise SettingsError(
                f"--config {path}: {context.info_name} has no option {word!r}.{did_you_mean(word, words)}"
            )
        context.default_map[words.get(word) or words[word.replace("_", "-")]] = value
    return path


class Value(NamedTuple):
    """An effective value."""

    part: str  # "settings", or the verb whose option it is
    name: str
    value: Any
    source: str


def effective(
    asked: Asked, config: Path | None, options: Mapping[str, str], contexts: Mapping[str, click.Context]
) -> Iterator[Value]:
    """Every setting, then every option of the verbs in `contexts` that has a value, and where it comes from.

    Args:
        config: the file of `--config`.
        options: what `-o` said.
        contexts: verb -> its options as they would be without a word on the command line.
    """
    from tinyverse.core.run_config import check_can_join
    from tinyverse.experiment import loader

    kept = asked.folder.settings()
    check_can_join(asked.run, kept, asked.title, asked.given)
    in_file = read(config)[0] if config else {}
    settings = asked.resolved(kept.get("settings", {}))
    for name, value in settings.items():
        source = (
            "-o" if name in options
            else str(config) if name in in_file
            else f"{asked.folder.path}/settings.json" if name in kept.get("settings", {})
            else "make_experiment"
        )  # fmt: skip
        yield Value("settings", name, value, source)
    experiment = loader.build(asked.module, settings)
    for verb, context in contexts.items():
        for option in context.command.params:
            name = option.name or ""
            value, source = context.params.get(name), _source(context, option, config)
            if value is None and hasattr(experiment, name):
                value, source = getattr(experiment, name), "the experiment"
            if (value or source not in ("default", "the experiment")) and name not in HIDDEN:
                words = [word.removeprefix("--") for word in option.opts if word.startswith("--")]
                yield Value(verb, (words or [name])[-1], value, source)


def _source(context: click.Context, option: click.Parameter, config: Path | None) -> str:
    source = context.get_parameter_source(option.name or "")
    if source is ParameterSource.ENVIRONMENT:
        return f"${option.envvar or f'{context.auto_envvar_prefix}_{str(option.name).upper()}'}"
    return f"{config} [{context.info_name}]" if source is ParameterSource.DEFAULT_MAP else "default"
