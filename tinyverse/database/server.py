"""Where the Redis or Valkey server is, and how to start one, so that nobody has to install or secure one first.

A server is looked for in this order: what the caller names, TINYVERSE_REDIS_URL, REDIS_URL, this user's own local
server if it runs; else it is started. What a local server is made of is in `server_config`.

    find_server()                 -> Address      for players and trainers
    start(), status(), stop()                     this user's local server
    with private_server() as server: server.url   one of our own, gone with this process however it ends
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tinyverse.core.errors import DatabaseError, DatabaseLost, ServerError, SettingsError
from tinyverse.core.files import atomic_write
from tinyverse.database.connection import connect, errors, ping, public, with_login
from tinyverse.database.server_config import Server, prepare, server_folder

START_SECONDS = 15.0
PORT = 7070  # that a local server listens on where only a host is given


@dataclasses.dataclass(frozen=True)
class Address:
    """A server that answers. `str(address)` has no password in it."""

    url: str = dataclasses.field(repr=False)
    source: str  # who named it: "--redis", "TINYVERSE_REDIS_URL", "REDIS_URL", "running", "started"

    def __str__(self) -> str:
        return public(self.url)


def find_server(
    url: str | None = None,
    host: str | None = None,
    port: int | None = None,
    password: str | None = None,
    start: bool = True,
) -> Address:
    """The server to use, which has answered a PING; with `start`, one is started when nothing else is named or runs.

    Raises:
        SettingsError: `url` and `host` contradict each other, or a password or port belongs to nothing.
        ServerError: the named server does not answer or refuses us, or none can be started.
    """
    if url and (host or port):
        raise SettingsError("--redis and --host/--port both name a server. Give one of them.")
    if host or port:
        url = f"redis://{host or 'localhost'}:{port or 6379}/0"
    named = [("--redis" if not (host or port) else "--host", url)]
    named += [(name, os.environ.get(name)) for name in ("TINYVERSE_REDIS_URL", "REDIS_URL")]
    for source, candidate in named:
        if candidate:
            address = candidate.strip()
            if password:
                address = with_login(address, urllib.parse.urlsplit(address).username or "", password)
            try:
                ping(address)
            except DatabaseError as error:
                hint = ". Is the server running and the address right?" if isinstance(error, DatabaseLost) else ""
                raise ServerError(f"{error} (named by {source}){hint}") from error
            return Address(address, source)
    if password:
        raise SettingsError(
            "--password is given but no server. Add --redis URL or --host NAME; the local server needs no password."
        )
    if server := running():
        return Address(server.url, "running")
    if not start:
        raise ServerError(
            "No server is named and none runs here. Give --redis URL, or start one with: tinyverse server start"
        )
    server, started = _start()
    return Address(server.url, "started" if started else "running")


def start(listen: str | None = None, max_memory: int | None = None) -> Server:
    """Starts this user's local server, or returns the one that runs.

    Args:
        listen: "host:port" or "host" to listen on TCP too, never without a password: that is in `tcp_url`.
        max_memory: bytes; by default a quarter of the memory, at most 4 GB.
    """
    if listen and not listen.isdigit() and ":" not in listen.rpartition("]")[2]:
        listen = f"{listen}:{PORT}"
    server, _ = _start(listen, max_memory)
    if listen and not server.tcp_url.endswith(f"@{listen}/0"):
        raise ServerError(f"The local server runs already, but not on {listen}. Stop it first: tinyverse server stop")
    return server


def for_others(url: str) -> str:
    """The URL as another machine can use it: with an address of this one where the server listens on all of them."""
    parts = urllib.parse.urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    host, _, port = place.rpartition(":")
    if host not in ("0.0.0.0", "[::]", "*"):
        return url
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing, only looks which way it would go
            host = probe.getsockname()[0]
    except OSError:
        host = socket.gethostname()
    return parts._replace(netloc=f"{user}@{host}:{port}").geturl()


def stop() -> bool:
    """Stops this user's local server and what it holds; False when none was running."""
    folder = server_folder()
    with _locked(folder):
        server = running()
        if server is None:
            return False
        with errors(server.admin_url), connect(server.admin_url) as client:
            client.shutdown(nosave=True)
        ends = time.monotonic() + START_SECONDS
        with contextlib.suppress(DatabaseLost):
            while time.monotonic() < ends:
                ping(server.url)
                time.sleep(0.01)
            raise ServerError(f"The local server (pid {server.pid}) was asked to stop and still answers.")
        _forget(folder)
        return True


def status() -> dict[str, Any] | None:
    """The local server: url, tcp_url, folder, pid, version, uptime (seconds), memory, max_memory (bytes), clients."""
    server = running()
    if server is None:
        return None
    with errors(server.admin_url), connect(server.admin_url) as client:
        info: Any = client.info()
    return {
        "url": server.url, "tcp_url": server.tcp_url, "folder": server.folder, "pid": info["process_id"],
        "version": server.version, "uptime": info["uptime_in_seconds"], "memory": info["used_memory"],
        "max_memory": info["maxmemory"], "clients": info["connected_clients"],
    }  # fmt: skip


def running() -> Server | None:
    """This user's local server if it answers; None if there is none. What a dead one left does not matter.

    Its pid is never asked: another process may have it by now. Only the server itself knows the password.

    Raises:
        ServerError: a server holds the socket but does not answer, or is not the one that server.json describes.
    """
    try:
        server = Server(**json.loads((server_folder() / "server.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    ends = time.monotonic() + START_SECONDS
    while True:
        try:
            ping(server.url, timeout=5.0)
            return server
        except DatabaseLost as error:
            if isinstance(error.__cause__, redis.TimeoutError):
                pid = server.pid or "and its pid"
                raise ServerError(
                    f"The local server in {server.folder} does not answer. End it with: kill -9 {pid}"
                ) from error
            if not _listens(Path(server.folder) / "s.sock"):
                return None
            if time.monotonic() > ends:  # it lives: another one beside it would part the run in two
                raise ServerError(
                    f"The local server lives, but {error} Try again later, or end pid {server.pid}."
                ) from error
            time.sleep(0.1)
        except DatabaseError as error:
            raise ServerError(f"Another server sits in {server.folder}. Stop it. It says: {error}") from error


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def private_server(max_memory: int | None = None, listen: str | None = None) -> Iterator[Server]:
    """A server of this process's own, in a temporary folder; both are gone afterwards, also after a kill -9 of us.

    A shell waits on a pipe whose other end this process holds (and children that it forks without exec): when the pipe
    closes, the shell ends the server.
    """
    folder = Path(tempfile.mkdtemp(prefix="tinyverse-", dir="/tmp"))
    watch = 'cd "$2"; "$1" - >server.log 2>&1 <server.conf & read -r _; kill -9 $!; wait $!; rm -rf "$2"'
    try:
        server, binary = prepare(folder, listen, max_memory)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    command = ["/bin/sh", "-c", watch, "tinyverse-watch", binary, str(folder)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    ) as watcher:
        try:
            yield _ready(server)
        finally:
            watcher.communicate(b"\n", timeout=START_SECONDS)


def _start(listen: str | None = None, max_memory: int | None = None) -> tuple[Server, bool]:
    """The local server, and whether it was started now: of several commands at once only one does it."""
    folder = server_folder()
    with _locked(folder):
        if server := running():
            return server, False
        _forget(folder)
        server, binary = prepare(folder, listen, max_memory, daemon=True)
        _write_state(folder, server)  # first: none is ever lost
        with (folder / "server.conf").open() as config:
            done = subprocess.run(
                [binary, "-"], cwd=folder, stdin=config, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, timeout=START_SECONDS, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            raise ServerError(_failure(server, done.stdout))
        server = _ready(server)
        _write_state(folder, server)
        return server, True


def _write_state(folder: Path, server: Server) -> None:
    atomic_write(folder / "server.json", json.dumps(dataclasses.asdict(server)).encode(), private=True)


def _ready(server: Server) -> Server:
    """Waits until the new server answers; the Server with its pid."""
    ends, log_file = time.monotonic() + START_SECONDS, Path(server.folder) / "server.log"
    while True:
        with contextlib.suppress(DatabaseLost), errors(server.admin_url), connect(server.admin_url) as client:
            info: Any = client.info("server")
            return dataclasses.replace(server, pid=info["process_id"])
        output = log_file.read_text(errors="replace") if log_file.exists() else ""
        if time.monotonic() > ends or re.search("FATAL|Fatal error|Failed listening|Failed opening", output):
            raise ServerError(_failure(server, output))
        time.sleep(0.01)


def _failure(server: Server, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()][-3:]
    return (
        f"The server ({server.version}) in {server.folder} did not start: {' / '.join(lines) or 'it printed nothing'}"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel frees it however its holder ends."""
    import fcntl  # not at the top: who plays on Windows has none, and needs none to reach a server elsewhere

    ends = time.monotonic() + 2 * START_SECONDS
    with (folder / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise ServerError(
                        f"Another process has been starting or stopping the server in {folder} for too long."
                    ) from None
                time.sleep(0.02)
        yield


def _forget(folder: Path) -> None:
    for name in ("server.json", "server.conf", "server.log", "s.sock"):
        (folder / name).unlink(missing_ok=True)
