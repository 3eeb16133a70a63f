"""The command `clear`: removes a run from the database. The run's folder stays."""

import contextlib

import click

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.errors import DatabaseError, RunConflict
from tinyverse.database import server
from tinyverse.database.redis import remove_keys


@click.command(cls=RunCommand)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-weights", is_flag=True, help="Keep the weights and the run config.")
@click.option("--force", is_flag=True, help="Also while workers live, and whatever is left of a run.")
@click.option("--stop", "stop_server", is_flag=True, help="End this user's local server afterwards.")
def clear(context: RunContext, yes: bool, keep_weights: bool, force: bool, stop_server: bool) -> None:
    """Removes the run's sessions, weights and bookkeeping from the database; runs/NAME stays."""
    what = "sessions and bookkeeping" if keep_weights else "sessions, weights and bookkeeping"
    with context.connected(start=False) if force else context.known() as database:
        workers = [] if force else database.workers()
        if workers:
            who = ", ".join(f"{worker.role} on {worker.host} (pid {worker.pid})" for worker in workers[:3])
            raise RunConflict(
                f"run {context.run} is at work: {who}. Stop it first ({context.command('stop')}), or add --force."
            )
        if not yes:
            click.confirm(f"Remove the {what} of run {context.run} from the database?", abort=True)
        database.clear(keep_weights)
    if force and not keep_weights and not context.database:
        _remove_the_rest(context)
    print(f"removed the {what} of run {context.run}")
    if stop_server and server.stop():
        print("stopped the local server")


def _remove_the_rest(context: RunContext) -> None:
    """Keys of the run that no command knows, where this user may look for them."""
    url, local = context.server(start=False), server.running()
    with contextlib.suppress(DatabaseError):
        remove_keys(local.admin_url if local and url in (local.url, local.tcp_url) else url, context.run)
