"""The command `stop`: asks every worker of a run to finish and leave."""

import time

import click

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand

WAIT = 15.0  # seconds, at most, for workers to leave


@click.command(cls=RunCommand)
def stop(context: RunContext) -> int:
    """Asks every worker of the run, wherever it is, to finish and leave."""
    with context.known() as database:
        before = len(database.workers())
        database.ask_stop()
        ends = time.monotonic() + WAIT
        with context.bar("workers that have left", before) as bar:
            while (there := len(database.workers())) and time.monotonic() < ends:
                bar.share = bar.share._replace(done=max(0, before - there))
                time.sleep(0.1)
        left = len(database.workers())
    print(f"{before - left} of {before} workers of run {context.run} have left")
    return 1 if left else 0
