"""The commands `sessions ls`, `show`, `video`, `export` and `import`: stored sessions as tables, videos and files.

All but `import` only read. No experiment is imported, unless its agent is to be asked for values.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyverse.cli.context import RECORDS, RunContext, positive
from tinyverse.cli.options import RunCommand
from tinyverse.core import system
from tinyverse.core.errors import SettingsError
from tinyverse.core.run_config import experiment_and_settings
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.weights import decode_weights
from tinyverse.database import archive
from tinyverse.database.base import Database
from tinyverse.envs.video import VideoWriter
from tinyverse.monitoring import metrics
from tinyverse.monitoring import sessions as stored


@click.group()
def sessions() -> None:
    """The stored sessions: as a list, a table, a video, or files."""


id_argument = click.argument("key", metavar="[ID]", required=False)


@sessions.command("ls", cls=RunCommand)
@click.option("-n", "limit", type=int, default=20, show_default=True, help="How many of the newest to look at.")
@click.option("--human", is_flag=True, help="Of these, only what people played.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
def ls(context: RunContext, limit: int = 20, human: bool = False, as_json: bool = False) -> None:
    """The newest sessions, a line each.

    Example: tinyverse atari.py sessions ls -n 50
    """
    positive(limit=limit)
    rows: list[dict[str, Any]] = []
    with _opened(context) as (database, _, spec):
        state, entries = database.state(), database.newest(limit)
        sizes = {key: len(blob) for key, blob in entries}

        def damaged(key: str, error: Exception) -> None:
            rows.append({"id": key, "bytes": sizes[key], "error": str(error)})

        for key, session in stored.decoded(entries, spec, human=human, on_damaged=damaged):
            rows.append(stored.summary(key, session, state) | {"bytes": sizes[key]})
        kept = database.size()["sessions"]
    if as_json:
        print(json.dumps(rows))
        return
    names = ("id", "player", "sequence", "version", "lag", "steps", "reward", "episodes", "bytes")
    Console().print(_table(names, rows))
    for row in rows:
        if "error" in row:
            print(f"{row['id']} cannot be read: {row['error']}")
    print(f"{len(rows)} of {counted(kept, 'session')} of run {context.run}")


@sessions.command("show", cls=RunCommand)
@id_argument
@click.option("--values", is_flag=True, help="Ask the experiment's agent, with the newest weights, for value and entropy.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(context: RunContext, key: str | None, values: bool = False, as_json: bool = False) -> None:
    """A session, the newest if no ID is given, step by step.

    Example: tinyverse atari.py sessions show 1700000000000-0
    """
    with _opened(context) as (database, meta, spec):
        key, session = stored.find(database, spec, context.run, key)
        computed = _values(context, database, meta, session) if values else {}
        facts = stored.summary(key, session, database.state())
    rows = stored.steps_of(session, **computed)
    if as_json:
        print(json.dumps({**facts, "metadata": session.metadata, "rows": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "")))
    names = ("step", "action", "reward", "value", "entropy", "log_prob", "end")
    Console().print(_table(names, rows))


@sessions.command("video", cls=RunCommand)
@id_argument
@click.option("--fps", type=float, default=15.0, show_default=True, help="Steps a second.")
def video(context: RunContext, key: str | None, fps: float = 15.0) -> None:
    """A video of what the agent saw, into ./records.

    Example: tinyverse atari.py sessions video 1700000000000-0
    """
    if not 0 < fps <= 1000:
        raise SettingsError(f"--fps is {fps:g}; give 0 to 1000 frames a second.")
    with _opened(context) as (database, _, spec):
        key, session = stored.find(database, spec, context.run, key)
    path = RECORDS / f"{context.run}-{key}.webm"
    with VideoWriter(path, fps) as writer, context.bar("frames", len(session.rewards) + 1) as bar:
        for frame in bar.over(stored.frames_of(session)):
            writer.write(frame)
    print(f"video: {path}")


@sessions.command("export", cls=RunCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-n", "limit", type=int, help="Of the newest so many [all].")
@click.option("--human", is_flag=True, help="Only what people played.")
def export(context: RunContext, file: Path, limit: int | None = None, human: bool = False) -> None:
    """Stored sessions as files: FILE.json, and shards of safetensors beside it; or FILE.h5, for other tools.

    Example: tinyverse atari.py sessions export demos.json --human
    """
    positive(limit=limit)
    with _opened(context) as (database, meta, spec):
        kept = database.size()["sessions"]
        with context.bar("sessions", min(limit or kept, kept)) as bar:
            entries = bar.over(stored.every(database) if limit is None else database.newest(limit))

            def damaged(key: str, error: Exception) -> None:
                context.say(f"session {key} is left out: {error}")

            chosen = stored.decoded(entries, spec, human=human, on_damaged=damaged)
            about = {"run": context.run, **experiment_and_settings(meta)}
            if file.suffix == ".h5":
                count = archive.write_hdf5(file, chosen, spec, about)
                done = f"{counted(count, 'session')} in {file}"
            else:
                found = archive.write(file, chosen, spec, about)
                done = f"{counted(len(found), 'session')}, shards: {len(found.shards)}, index: {found.path}"
    print(done)


@sessions.command("import", cls=RunCommand)
@click.argument("file", type=click.Path(path_type=Path))
def import_(context: RunContext, file: Path) -> None:
    """Pushes exported sessions into the run, if all of them fit it. What its trainer has had already it passes over.

    Example: tinyverse atari.py sessions import demos.json
    """
    found = archive.Archive.open(file)
    with _opened(context) as (database, _, spec), stop_on_signals() as should_stop:
        with context.bar("sessions checked", len(found)) as bar:
            archive.check(found, spec, context.run, on_session=bar.count)
        if len(found) > (capacity := database.state().capacity):
            context.say(f"the run keeps {counted(capacity, 'session')}; of {len(found):,} the newest will be left")
        with context.bar("sessions imported", len(found)) as bar:
            for count in stored.push(database, spec, (session for _, session in found), should_stop):
                bar.count(count)
    print(f"{counted(bar.share.done, 'session')} imported into run {context.run}")


@contextlib.contextmanager
def _opened(context: RunContext) -> Iterator[tuple[Database, dict[str, str], SessionSpec]]:
    """The run's database, what its workers agreed on, and the spec of its sessions."""
    with context.connected(start=False) as database:
        yield database, *stored.spec_of(database, context.run)


def _values(context: RunContext, database: Database, meta: dict[str, str], session: Session) -> dict[str, np.ndarray]:
    """{"value", "entropy"}: [T] each, of the newest weights."""
    system.set_threads(1)
    try:
        agent = context.make_agent(meta)
    except SettingsError as error:
        raise SettingsError(f"--values: {error}") from None
    found = database.get_weights()
    if found is None:
        raise SettingsError("--values: the run has no weights yet.")
    agent.set_weights(decode_weights(found[1])[0])
    computed = stored.evaluate_states(agent, session)
    return {name: computed[name] for name in ("value", "entropy")}


def _table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        justify: Any = "left" if name in ("id", "player", "end") else "right"
        longest = max((len(row["id"]) for row in rows), default=0) if name == "id" else None  # it is copied: never cut
        table.add_column(name.replace("_", "-"), justify=justify, min_width=longest, no_wrap=name == "id")
    for row in rows:
        table.add_row(*(escape(_cell(name, row.get(name, ""))) for name in names))
    return table


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "bytes":
        return metrics.size(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return " ".join(f"{key}={_cell('', part)}" for key, part in value.items())
    return " ".join(_cell("", part) for part in value) if isinstance(value, (list, tuple)) else str(value)
