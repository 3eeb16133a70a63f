"""Tidying: the verbs `info`, `stop` and `clear`. They look after a run and build nothing of the experiment."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live

from tinyverse.cli.context import Asked
from tinyverse.core.errors import RunConflict
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import did_you_mean
from tinyverse.database import server
from tinyverse.database.base import Database
from tinyverse.database.redis import list_runs
from tinyverse.monitoring import status, terminal


def do_info(asked: Asked, *, watch: bool = False, as_json: bool = False, errors: bool = False) -> None:
    """Prints what is known of the run, or the names of all runs. Builds nothing, imports no experiment."""
    if not asked.experiment and not asked.name:
        runs = redis_runs(asked)
        print(json.dumps(runs) if as_json else "\n".join(runs) or "there are no runs on this server")
        return
    console = Console()
    with _known(asked) as database:
        if as_json:
            print(json.dumps(status.gather(database, asked.run)))
        elif errors:
            console.print(terminal.errors(status.gather(database, asked.run)))
        elif not watch:
            console.print(terminal.panel(status.gather(database, asked.run)))
        else:
            with (
                stop_on_signals() as should_stop,
                Live(console=console, auto_refresh=False, screen=console.is_terminal) as live,
            ):
                while not should_stop():
                    live.update(terminal.panel(status.gather(database, asked.run)), refresh=True)
                    time.sleep(1.0)


@contextlib.contextmanager
def _known(asked: Asked) -> Iterator[Database]:
    """The database of a run that is there, or that somebody waits for.

    Raises:
        RunConflict: nobody has heard of it; names the runs there are.
    """
    with asked.connected(start=False) as database:
        if not (database.meta() or database.workers()):
            others = [] if asked.database else redis_runs(asked)
            there = f"there are {', '.join(others)}" if others else "there is none"
            hint = did_you_mean(asked.run, others)
            raise RunConflict(f"there is no run {asked.run} in the database; {there}.{hint} Choose one with --name.")
        yield database


def redis_runs(asked: Asked) -> list[str]:
    """The names of the runs on the server."""
    address = server.find_server(asked.redis, asked.host, asked.port, asked.password, start=False)
    return list_runs(address.url)


def do_stop(asked: Asked, *, wait: float = 15.0) -> tuple[int, int]:
    """Asks every worker of the run to leave; returns (how many were there, how many still are after `wait` seconds)."""
    with _known(asked) as database:
        before = len(database.workers())
        database.ask_stop()
        ends = time.monotonic() + wait
        with asked.bar("workers that have left", before) as bar:
            while (there := len(database.workers())) and time.monotonic() < ends:
                bar.share = bar.share._replace(done=max(0, before - there))
                time.sleep(0.1)
        return before, len(database.workers())


def do_clear(
    asked: Asked, *, keep_weights: bool = False, force: bool = False, confirm: Callable[[], object] = lambda: None
) -> None:
    """Removes the run from the database; its folder stays. `confirm` is called before, and raises if it must not be."""
    with _known(asked) as database:
        workers = database.workers()
        if workers and not force:
            who = ", ".join(f"{worker.role} on {worker.host} (pid {worker.pid})" for worker in workers[:3])
            raise RunConflict(
                f"run {asked.run} is at work: {who}. Stop it first (tinyverse {asked.experiment} stop), or add --force."
            )
        confirm()
        database.clear(keep_weights)
