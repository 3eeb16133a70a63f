"""Cli of sessions: the words behind `sessions`; looking.py does what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyverse.cli.options import common
from tinyverse.core.text import counted

if TYPE_CHECKING:
    from tinyverse.cli.context import Asked


@click.group()
def sessions() -> None:
    """The stored sessions: as a list, a table, a film, or files.

    Example: tinyverse atari.py sessions ls
    """


ID = click.argument("key", metavar="[ID]", required=False)


@sessions.command(name="ls")
@common
@click.option("-n", "limit", type=int, default=20, show_default=True, help="How many of the newest to look at.")
@click.option("--human", is_flag=True, help="Of these, only what people played.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def sessions_ls(asked: Asked, **options: Any) -> None:
    """The newest sessions, a line each.

    Example: tinyverse atari.py sessions ls -n 50
    """
    from tinyverse.cli.sessions_work import do_list

    do_list(asked, **options)


@sessions.command(name="show")
@common
@ID
@click.option(
    "--values", is_flag=True, help="Ask the experiment's agent, with the newest weights, for value and entropy."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def sessions_show(asked: Asked, key: str | None, **options: Any) -> None:
    """A session, the newest if no ID is given, step by step.

    Example: tinyverse atari.py sessions show 1700000000000-0
    """
    from tinyverse.cli.sessions_work import do_show

    do_show(asked, key, **options)


@sessions.command(name="video")
@common
@ID
@click.option("--fps", type=float, default=15.0, show_default=True, help="Steps a second.")
def sessions_video(asked: Asked, key: str | None, fps: float) -> None:
    """A film of what the agent saw, into ./records.

    Example: tinyverse atari.py sessions video 1700000000000-0
    """
    from tinyverse.cli.sessions_work import do_film

    print(f"video: {do_film(asked, key, fps=fps)}")


@sessions.command(name="export")
@common
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-n", "limit", type=int, help="Of the newest so many [all].")
@click.option("--human", is_flag=True, help="Only what people played.")
def sessions_export(asked: Asked, file: Path, **options: Any) -> None:
    """Stored sessions as files: FILE.json, and shards of safetensors beside it; or FILE.h5, for other tools.

    Example: tinyverse atari.py sessions export demos.json --human
    """
    from tinyverse.cli.sessions_work import do_export, do_export_hdf5

    if file.suffix == ".h5":
        print(f"{counted(do_export_hdf5(asked, file, **options), 'session')} in {file}")
        return
    found = do_export(asked, file, **options)
    print(f"{counted(len(found), 'session')}, shards: {len(found.shards)}, index: {found.path}")


@sessions.command(name="import")
@common
@click.argument("file", type=click.Path(path_type=Path))
def sessions_import(asked: Asked, file: Path) -> None:
    """Pushes exported sessions into the run, if all of them fit it. What its trainer has had already it passes over.

    Example: tinyverse atari.py sessions import demos.json
    """
    from tinyverse.cli.sessions_work import do_import

    print(f"{counted(do_import(asked, file), 'session')} imported into run {asked.run}")
