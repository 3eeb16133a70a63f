"""The command `clear`: removes a run from the database. The run's folder stays."""

import click

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.errors import RunConflict
from tinyverse.database import server


@click.command(cls=RunCommand)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-weights", is_flag=True, help="Keep the weights and the run config.")
@click.option("--force", is_flag=True, help="Also while workers live.")
@click.option("--stop", "stop_server", is_flag=True, help="End this user's local server afterwards.")
def clear(context: RunContext, yes: bool, keep_weights: bool, force: bool, stop_server: bool) -> None:
    """Removes the run's sessions, weights and bookkeeping from the database; runs/NAME stays."""
    what = "sessions and bookkeeping" if keep_weights else "sessions, weights and bookkeeping"
    with context.known() as database:
        workers = database.workers()
        if workers and not force:
            who = ", ".join(f"{worker.role} on {worker.host} (pid {worker.pid})" for worker in workers[:3])
            stop = f"tinyverse {context.experiment} stop"
            raise RunConflict(f"run {context.run} is at work: {who}. Stop it first ({stop}), or add --force.")
        if not yes:
            click.confirm(f"Remove the {what} of run {context.run} from the database?", abort=True)
        database.clear(keep_weights)
    print(f"removed the {what} of run {context.run}")
    if stop_server and server.stop():
        print("stopped the local server")
