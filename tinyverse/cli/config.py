"""The command `config`: every setting and option that has a value, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from tinyverse.cli.config_file import read
from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.run_config import check_can_join
from tinyverse.experiment import loader

HIDDEN = ("config", "options", "password", "redis")  # where the values come from, and secrets


@click.command(cls=RunCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def config(ctx: click.Context, context: RunContext, as_json: bool) -> None:
    """Every setting and option that has a value, and where it comes from: command line, environment, file, experiment.

    Example: tinyverse atari.py config --config fast.toml
    """
    file, options = ctx.params["config"], dict(each.split("=", 1) for each in ctx.params["options"])
    words, group = ["--config", str(file)] if file else [], ctx.find_root().command
    assert isinstance(group, click.Group)
    contexts = {}
    for verb in ("play", "train", "eval"):
        command = group.get_command(ctx, verb)
        assert command is not None
        contexts[verb] = command.make_context(verb, list(words), parent=ctx.parent)
    values = list(_effective(context, file, options, contexts))
    if as_json:
        print(json.dumps([value._asdict() for value in values], default=str))
        return
    widths = [max(len(str(value[column])) for value in values) for column in range(3)]
    for value in values:
        print("  ".join(f"{word!s:<{width}}" for word, width in zip(value, [*widths, 0], strict=True)).rstrip())


class Value(NamedTuple):
    """An effective value."""

    part: str  # "settings", or the command whose option it is
    name: str
    value: Any
    source: str


def _effective(
    context: RunContext, config: Path | None, options: Mapping[str, str], contexts: Mapping[str, click.Context]
) -> Iterator[Value]:
    """Every setting, then every option of the commands in `contexts` that has a value, and where it comes from.

    Args:
        config: the file of `--config`.
        options: what `-o` said.
        contexts: command -> its options as they would be without a word on the command line.
    """
    kept = context.folder.settings()
    check_can_join(context.run, kept, context.title, context.given)
    in_file = read(config)[0] if config else {}
    settings = context.resolved(kept.get("settings", {}))
    for name, value in settings.items():
        source = (
            "-o" if name in options
            else str(config) if name in in_file
            else f"{context.folder.path}/settings.json" if name in kept.get("settings", {})
            else "make_experiment"
        )  # fmt: skip
        yield Value("settings", name, value, source)
    experiment = loader.build(context.module, settings)
    for command, ctx in contexts.items():
        for option in ctx.command.params:
            name = option.name or ""
            value, source = ctx.params.get(name), _source(ctx, option, config)
            if value is None and hasattr(experiment, name):
                value, source = getattr(experiment, name), "the experiment"
            if (value or source not in ("default", "the experiment")) and name not in HIDDEN:
                words = [word.removeprefix("--") for word in option.opts if word.startswith("--")]
                yield Value(command, (words or [name])[-1], value, source)


def _source(ctx: click.Context, option: click.Parameter, config: Path | None) -> str:
    source = ctx.get_parameter_source(option.name or "")
    if source is ParameterSource.ENVIRONMENT:
        return f"${option.envvar or f'{ctx.auto_envvar_prefix}_{str(option.name).upper()}'}"
    return f"{config} [{ctx.info_name}]" if source is ParameterSource.DEFAULT_MAP else "default"
