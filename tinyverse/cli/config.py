"""The command `config`: every setting and option that has a value, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tinyverse.cli.config_file import read
from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.run_config import check_can_join
from tinyverse.experiment import loader

if TYPE_CHECKING:
    from tinyverse.experiment.experiment import Experiment

COLUMNS = ("part", "name", "value", "source")  # a part: "settings", or the command whose option it is
HIDDEN = ("config", "options", "password", "redis")  # where the values come from, and secrets


@click.command(cls=RunCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def config(ctx: click.Context, context: RunContext, as_json: bool) -> None:
    """Every setting and option that has a value, and where it comes from: command line, environment, file, experiment.

    Example: tinyverse atari.py config --config fast.toml
    """
    file, group = ctx.params["config"], ctx.find_root().command
    assert isinstance(group, click.Group)
    kept = context.folder.settings()
    check_can_join(context.run, kept, context.title, context.given)
    settings = context.resolved(kept.get("settings", {}))
    sources = {
        "-o": [option.split("=", 1)[0].strip() for option in ctx.params["options"]],
        str(file): read(file)[0] if file else {},
        f"{context.folder.path}/settings.json": kept.get("settings", {}),
    }
    rows = [
        ("settings", name, value, next((source for source in sources if name in sources[source]), "make_experiment"))
        for name, value in settings.items()
    ]
    experiment = loader.build(context.module, settings)
    for verb in ("play", "train", "eval"):
        command = group.get_command(ctx, verb)
        assert command is not None
        made = command.make_context(verb, ["--config", str(file)] if file else [], parent=ctx.parent)
        rows += _options(made, experiment, file)
    if as_json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], default=str))
        return
    *widths, _ = (max(map(len, map(str, column))) for column in zip(*rows, strict=True))
    for row in rows:
        print("  ".join(f"{word!s:<{width}}" for word, width in zip(row, [*widths, 0], strict=True)))


def _options(ctx: click.Context, experiment: Experiment, file: Path | None) -> Iterator[tuple[str, str, Any, str]]:
    """The options of a command that have a value without a word on its command line."""
    for option in ctx.command.params:
        name, source = str(option.name), "default"
        value, found = ctx.params.get(name), ctx.get_parameter_source(name)
        if found is ParameterSource.ENVIRONMENT:
            source = f"${option.envvar or f'{ctx.auto_envvar_prefix}_{name.upper()}'}"
        elif found is ParameterSource.DEFAULT_MAP:
            source = f"{file} [{ctx.info_name}]"
        if value is None and hasattr(experiment, name):
            value, source = getattr(experiment, name), "the experiment"
        if (value or source not in ("default", "the experiment")) and name not in HIDDEN:
            words = [word.removeprefix("--") for word in option.opts if word.startswith("--")]
            yield str(ctx.info_name), (words or [name])[-1], value, source
