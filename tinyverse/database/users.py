"""Users: three of them for a run, so that who only plays or looks can do no more than that.

    player    appends sessions, heartbeats and finished episodes; reads the run's weights and config
    trainer   everything in this run, nothing in others
    viewer    reads

The server enforces it. Key permissions apart for reading and writing exist from Redis 7.0 on, and in every Valkey.
"""

import os
import secrets

import redis

from tinyverse.core.errors import DatabaseError, ServerError
from tinyverse.database.connection import connect, errors, public, servers, with_login
from tinyverse.database.schema import CLUSTER_COMMANDS, COMMANDS, Keys
from tinyverse.database.server import Server, find_server, for_others, start
from tinyverse.database.server_config import keep_users, sha256

ROLES = ("player", "trainer", "viewer")
OLDEST = (7, 0)
_EVERYONE = ("ping", "time", "client|setname", "multi", "exec", "get", "hget", "hmget", "hgetall", *CLUSTER_COMMANDS)
_READING = ("xrange", "xrevrange", "xread", "xlen", "smembers")


def rules(role: str, run: str) -> list[str]:
    """What an ACL says of a role. Brackets keep a command to its own keys: who may count sessions may not set State."""
    keys = Keys(run)
    everything = [*keys.all, keys.weights("*")]
    shared = ["resetchannels", "-@all"]
    if role == "trainer":
        return [*shared, *_grant(*COMMANDS, *CLUSTER_COMMANDS), *(f"~{key}" for key in [*everything, Keys.RUNS])]
    if role == "viewer":
        return [*shared, *_grant(*_EVERYONE, *_READING), *(f"%R~{key}" for key in [*everything, Keys.RUNS])]
    readable = [keys.meta, keys.stat, keys.tally, keys.current, keys.weights("*")]
    return [
        *shared, *_grant(*_EVERYONE), *(f"%R~{key}" for key in readable),
        f"(+xadd %W~{keys.sessions} %W~{keys.episodes} %W~{keys.errors})",
        f"(+xtrim +xlen ~{keys.sessions})",  # a full server: the oldest make room
        f"(+hset +hdel %W~{keys.heartbeats})",
        f"(+hincrby ~{keys.tally})",
    ]  # fmt: skip


def make_users(run: str, url: str | None = None) -> dict[str, str]:
    """Makes the three users with new passwords; who had the old ones is shut out. Returns each role's URL.

    Args:
        url: of a server or a cluster, with a user who may run ACL. None: as the environment says, else this user's local
            server.
    Raises:
        ServerError: the server is too old, or does not let us.
    """
    named = url or os.environ.get("TINYVERSE_REDIS_URL") or os.environ.get("REDIS_URL")
    local: Server | None = None if named else start()
    admin = local.admin_url if local else find_server(url).url
    base = (for_others(local.tcp_url) if local.tcp_url else local.url) if local else admin
    passwords = {role: secrets.token_hex(32) for role in ROLES}
    lines = [
        [f"{role}.{run}", "reset", "on", f"#{sha256(password)}", *rules(role, run)]
        for role, password in passwords.items()
    ]
    try:
        with errors(admin):
            nodes = servers(admin)
        for node in nodes:
            _set_users(node, lines)
    except DatabaseError as error:
        if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
            raise ServerError(
                f"{public(admin)}: this user may not make others. Name one who may run INFO and ACL SETUSER, in "
                "TINYVERSE_REDIS_URL."
            ) from error
        raise
    if local:
        keep_users(local, {line[0]: " ".join(line) for line in lines})
    return {role: with_login(base, f"{role}.{run}", password) for role, password in passwords.items()}


def _set_users(url: str, lines: list[list[str]]) -> None:
    with errors(url), connect(url) as client:
        version = client.info("server")["redis_version"]
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            raise ServerError(f"{public(url)} is {version}; roles want Redis 7.0 or newer, or Valkey.")
        for line in lines:
            client.execute_command("ACL", "SETUSER", *line)
            client.execute_command("CLIENT", "KILL", "USER", line[0])  # who came in with the old password


def _grant(*commands: str) -> list[str]:
    return [f"+{command}" for command in commands]
