"""The command `watch`: serves the page of a run until it is stopped. It reads, and changes nothing."""

import functools
import os
import secrets
import time
from importlib.util import find_spec

import click

from tinyverse.cli.context import RECORDS, RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core.errors import SettingsError
from tinyverse.core.signals import stop_on_signals

LISTEN = "127.0.0.1:7080"
TOKEN = "TINYVERSE_PAGE_TOKEN"


@click.command(cls=RunCommand)
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT", help="Where to serve it; on another address than loopback, with a token.")  # fmt: skip
@click.option("--values/--no-values", default=True, show_default=True, help="Build the experiment's agent here, to draw what it thinks of a state.")  # fmt: skip
def watch(context: RunContext, listen: str, values: bool) -> None:
    """The run as a page in a browser, which reads and changes nothing: curves, workers, videos, any player's environments."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SettingsError(f"watch needs {' and '.join(missing)}: pip install 'tinyverse[page]'.")
    from tinyverse.monitoring import dashboard
    from tinyverse.monitoring.dashboard.frames import Frames

    host, _ = dashboard.address(listen)
    token = "" if dashboard.is_loopback(host) else os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    if token and len(token) < dashboard.SHORTEST_TOKEN:
        raise SettingsError(
            f"{TOKEN} has {len(token)} characters; take {dashboard.SHORTEST_TOKEN} or more, or leave it out and one is made."
        )
    with context.seen(waits=True) as database, stop_on_signals() as should_stop:
        frames = Frames(database, context.make_agent if values else None)
        make = functools.partial(dashboard.application, database, context.folder, frames, RECORDS, token=token)
        with dashboard.served(make, listen) as url:
            print(f"open {url}{f'?token={token}' if token else ''} (Ctrl-C ends it)", flush=True)
            while not should_stop():
                time.sleep(0.2)
