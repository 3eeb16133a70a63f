"""Watching: the verb `watch`: serves the page of a run until it is stopped. It reads, and changes nothing."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tinyverse.cli.context import RECORDS, Asked
from tinyverse.core.errors import SettingsError
from tinyverse.core.signals import stop_on_signals
from tinyverse.monitoring import dashboard
from tinyverse.monitoring.dashboard.games import Games

LISTEN = "127.0.0.1:7080"
TOKEN = "TINYVERSE_PAGE_TOKEN"


def do_watch(
    asked: Asked, *, listen: str = LISTEN, values: bool = True, on_url: Callable[[str], object] = lambda url: None
) -> None:
    """Serves the page on `listen`; on anything but loopback only to those who show a token.

    Args:
        values: build the experiment's agent here, to draw what it thinks of a state.
        on_url: called with the address to open, once it can be opened.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SettingsError(f"watch needs {' and '.join(missing)}: pip install 'tinyverse[page]'.")
    host, _ = dashboard.address(listen)
    token = "" if dashboard.is_loopback(host) else os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    with asked.connected(start=False) as database, stop_on_signals() as should_stop:
        games = Games(asked, database, values=values)

        def make(hosts: tuple[str, ...], closing: threading.Event) -> Any:
            return dashboard.application(
                database, asked.folder, games, RECORDS, token=token, hosts=hosts, closing=closing
            )

        with dashboard.served(make, listen) as url:
            on_url(f"{url}?token={token}" if token else url)
            waiting = threading.Event()
            while not should_stop():
                waiting.wait(0.2)
