"""The commands `server start`, `users`, `stop` and `status`: this user's local database server."""

import json

import click

from tinyverse.core.text import counted
from tinyverse.database import server as redis_server
from tinyverse.database import users


@click.group()
def server() -> None:
    """This user's local database server."""


@server.command(name="start")
@click.option("--listen", metavar="HOST[:PORT]", help="Listen on TCP too, for other machines, with a password; without it only on a socket. [port 7070]")  # fmt: skip
@click.option("--max-memory", metavar="MB", type=int, help="Memory it may use [a quarter of the machine's, at most 4000].")  # fmt: skip
def server_start(listen: str | None, max_memory: int | None) -> None:
    """Starts it, unless it runs.

    Example: tinyverse server start --listen 10.0.0.5:7070
    """
    started = redis_server.start(listen, max_memory * 1_000_000 if max_memory else None)
    print(f"server {started.version} runs in {started.folder} (pid {started.pid})")
    if started.tcp_url:
        print(f"others reach it with TINYVERSE_REDIS_URL={redis_server.for_others(started.tcp_url)}")
        print("which may do everything in every run; for players of one run: tinyverse server users RUN")


@server.command(name="users")
@click.argument("run")
@click.option("--redis", metavar="URL", help="A server of your own, with a user who may make others; better in TINYVERSE_REDIS_URL.")  # fmt: skip
def server_users(run: str, redis: str | None) -> None:
    """Makes three users for a run: a player, a trainer, and a viewer who only reads. Again: new passwords.

    Example: tinyverse server users pong
    """
    for role, url in users.make_users(run, redis).items():
        print(f"{role:<8} TINYVERSE_REDIS_URL={url}")


@server.command(name="stop")
def server_stop() -> None:
    """Stops it; what it holds is gone."""
    print("stopped" if redis_server.stop() else "no local server was running")


@server.command(name="status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def server_status(as_json: bool) -> int:
    """Whether it runs, where, and how much it holds."""
    facts = redis_server.status()
    if as_json:
        print(json.dumps(facts))
    elif facts is None:
        print("no local server runs")
    else:
        print(f"server {facts['version']} in {facts['folder']} (pid {facts['pid']}), up {facts['uptime']} s, "
              f"{facts['memory'] / 1e6:.1f} of {facts['max_memory'] / 1e6:.0f} MB, {counted(facts['clients'], 'client')}")  # fmt: skip
        print(f"TINYVERSE_REDIS_URL={facts['tcp_url'] or facts['url']}")
    return 0 if facts else 1
