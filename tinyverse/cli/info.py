"""The command `info`: who does what, and what each waits for. Builds nothing of the experiment."""

import json
import time

import click
from rich.console import Console
from rich.live import Live

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.signals import stop_on_signals
from tinyverse.monitoring import status, terminal


@click.command(cls=RunCommand)
@click.option("--watch", is_flag=True, help="Draw it anew each second.")
@click.option("--errors", is_flag=True, help="The last errors that ended a worker, with their tracebacks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(context: RunContext, watch: bool, errors: bool, as_json: bool) -> None:
    """Who does what, and what each waits for. Without an experiment: the runs on the server.

    Example: tinyverse atari.py info --watch
    """
    if not context.experiment and not context.name:
        runs = context.runs()
        print(json.dumps(runs) if as_json else "\n".join(runs) or "there are no runs on this server")
        return
    console = Console()
    with context.seen() as database:
        if as_json:
            print(json.dumps(status.gather(database, context.run)))
        elif errors:
            console.print(terminal.errors(status.gather(database, context.run)))
        elif not watch:
            console.print(terminal.panel(status.gather(database, context.run)))
        else:
            live = Live(console=console, auto_refresh=False, screen=console.is_terminal)
            with stop_on_signals() as should_stop, live:
                while not should_stop():
                    live.update(terminal.panel(status.gather(database, context.run)), refresh=True)
                    time.sleep(1.0)
