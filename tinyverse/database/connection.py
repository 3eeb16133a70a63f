"""Connection: how to reach a server by its URL, what its errors mean, and the database of a run on it.

    redis://user:password@host:port/0                          a server; rediss:// with TLS, unix://path
    redis+cluster://user:password@host:port,host:port/         any nodes of a Redis Cluster
    redis+sentinel://user:password@host:port,host:port/NAME    the Sentinels that watch over the server NAME

All keys of a run lie in one slot of a cluster. So redis-py's cluster client finds the node that has the run, and an ordinary
client speaks with that node. When the run moves to another node, that counts as a lost connection, and `connect` finds it.
"""

import contextlib
import importlib
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from tinyverse.core.errors import DatabaseError, DatabaseLost, SettingsError
from tinyverse.core.text import printable
from tinyverse.database.base import Database
from tinyverse.database.schema import CLUSTER_COMMANDS, COMMANDS, PREFIX
from tinyverse.database.signing import signed

PORT, SENTINEL_PORT = 6379, 26379
NOT_NOW = (
    exceptions.BusyLoadingError, exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.ClusterDownError,
)  # fmt: skip
SIGNS_OF_NOT_NOW = (  # in what a server says that lives and will take the request later; then in what proxies say
    "MISCONF", "NOREPLICAS", "BUSY ", "UNBLOCKED", "REDIRECT", "max number of clients", "Server is shutting down",
    "no upstream host", "upstream failure", "upstream protocol error", "Connection refused", "Connection timed out",
    "Connection reset", "Broken pipe", "No route to host", "unavailable",
)  # fmt: skip
LOST = (  # an answer that cannot be read counts as none
    redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse, OSError, exceptions.RedisClusterException,
)  # fmt: skip


def open_database(
    url: str, run: str, *, database: str | None = None, name: str = "tinyverse", timeout: float = 5.0
) -> Database:
    """The database of a run: on the Redis server at `url`, or the user's own class called with (url, run).

    Where TINYVERSE_SECRET is set, it signs what it writes, and verifies what it reads.

    Args:
        database: "module:Class" of a `Database` of the user's own.
        name, timeout: as of `connect`.

    Raises:
        SettingsError: the run's name, `database` or TINYVERSE_SECRET cannot be used.
    """
    from tinyverse.database.redis import RedisDatabase  # it imports this module

    if not database:
        return signed(RedisDatabase(url, run, name=name, timeout=timeout), run)
    module, _, attribute = database.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)(url, run)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(f"--database {database} should be module:Class, called with (url, run): {error}") from error
    if not isinstance(made, Database):
        raise SettingsError(
            f"--database {database} made a {type(made).__name__}; it must inherit tinyverse.database.base.Database."
        )
    return signed(made, run)


def connect(url: str, *, name: str = "tinyverse", timeout: float = 5.0, key: str = "") -> redis.Redis:
    """A client that never repeats a request by itself (it would run INCR and MULTI twice) and reads in large pieces.

    Of a cluster it asks a node at once, so it raises what redis-py raises; see `errors`.

    Args:
        name: how the server's list of clients calls us.
        timeout: seconds without an answer until the server counts as lost; longer than any blocking read.
        key: of a cluster, the client is that of the node that holds this key.

    Raises:
        SettingsError: the URL cannot be understood.
    """
    keepalive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    options: dict[str, Any] = dict(
        protocol=2, decode_responses=False, socket_timeout=timeout, socket_connect_timeout=timeout,
        socket_read_size=1 << 20, retry=Retry(NoBackoff(), 0), health_check_interval=15, driver_info=None,
        client_name=re.sub(r"[^!-~]", "-", f"tv-{name}-{socket.gethostname()}-{os.getpid()}"), **keepalive,
    )  # fmt: skip
    with _understood(url):
        if _kind(url) == "sentinel":
            return _sentinel(url, options)
        if _kind(url) != "cluster":
            if "," in urllib.parse.urlsplit(url).netloc.rpartition("@")[2]:
                raise ValueError("a run lies on one server")
            return redis.Redis.from_url(url, **options)
    cluster, options = _cluster(url, options)
    node = cluster.get_node_from_key(key)
    return redis.Redis(host=node.host, port=node.port, **options)


def servers(url: str) -> list[str]:
    """The URLs of the servers that keep users of their own: all nodes of a cluster, else the URL itself."""
    if _kind(url) != "cluster":
        return [url]
    parts = urllib.parse.urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    single = parts._replace(scheme=parts.scheme.partition("+")[0])
    nodes = _cluster(url, {"protocol": 2})[0].get_nodes()
    return [single._replace(netloc=f"{user}{at}{node.host}:{node.port}").geturl() for node in nodes]


def ping(url: str, timeout: float = 5.0) -> None:
    """Raises DatabaseLost where the server does not answer, DatabaseError where it refuses us."""
    with errors(url), connect(url, timeout=timeout) as client:
        client.ping()


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """Turns what redis-py raises into DatabaseLost (no answer) or DatabaseError (a refusal), naming the server.

    A ValueError is taken for an answer that cannot be read: a DatabaseError too.
    """
    try:
        yield
    except (redis.RedisError, exceptions.RedisClusterException, OSError, ValueError) as error:
        reason: BaseException = error
        while isinstance(reason, exceptions.RedisClusterException) and (
            cause := reason.__cause__ or reason.__context__
        ):
            reason = cause  # why no node could be asked
        raise _translated(reason, url) from reason


def public(url: str) -> str:
    """The URL without passwords."""
    hidden = r"(://[^:@/]*):.*@|(?<=password=)[^&]*"
    return re.sub(hidden, lambda hit: f"{hit[1]}:***@" if hit[1] is not None else "***", url)


def with_login(url: str, user: str, password: str) -> str:
    """The URL with this user and password."""
    parts = urllib.parse.urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:{urllib.parse.quote(password, safe='')}@{place}").geturl()


def _kind(url: str) -> str:
    """ "cluster", "sentinel", or "" of a single server."""
    return urllib.parse.urlsplit(url).scheme.partition("+")[2]


@contextlib.contextmanager
def _understood(url: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError):
        raise SettingsError(
            f"{public(url)} is not a Redis URL, like redis://[user:password@]host:port/0, rediss://…, unix://…, "
            "redis+cluster://host:port,host:port/ or redis+sentinel://host:port,host:port/NAME"
        ) from None  # what it says may have a part of the password in it


def _places(url: str, port: int) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """The hosts and ports that a URL names with commas in between, and the options of connections to them."""
    parts = urllib.parse.urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    single = parts._replace(scheme=parts.scheme.partition("+")[0], path="")
    several = [parse_url(single._replace(netloc=f"{user}{at}{host}").geturl()) for host in hosts.split(",")]
    places = [(one.pop("host", "localhost"), one.pop("port", port)) for one in several]
    options: dict[str, Any] = several[0]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return places, options


def _cluster(url: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What the first node that answers says of the cluster, and the options of connections to its nodes."""
    with _understood(url):
        places, given = _places(url, PORT)
        if given.pop("db", 0):
            raise ValueError("a cluster has no other database than 0")
    options, nodes = {**given, **options}, [ClusterNode(host, port) for host, port in places]
    cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **options)
    cluster.close()  # it was only asked where everything lies
    return cluster, options


def _sentinel(url: str, options: dict[str, Any]) -> redis.Redis:
    name = urllib.parse.urlsplit(url).path.strip("/")
    if not name:
        raise ValueError("the name of the watched server is missing")
    places, given = _places(url, SENTINEL_PORT)
    asking = {word: options[word] for word in ("socket_timeout", "socket_connect_timeout")}
    secure = {"ssl": True} if "ssl" in given else {}
    return Sentinel(places, sentinel_kwargs={**asking, **secure}).master_for(name, **{**given, **options})


def _translated(error: BaseException, url: str) -> DatabaseError:
    # redis-py quotes the command, bytes of a session too, in front of what the server says
    reason = printable(str(error).rpartition(" of pipeline caused error: ")[2], 300)
    says_so = isinstance(error, redis.ResponseError) and any(sign in reason for sign in SIGNS_OF_NOT_NOW)
    not_now = isinstance(error, NOT_NOW) or says_so
    kind, of_cluster = DatabaseError, _kind(url) == "cluster"
    if isinstance(error, redis.AuthenticationError):
        user = urllib.parse.urlsplit(url).username or "default"
        text = f"refuses user {user!r}: wrong or missing password. Check TINYVERSE_REDIS_URL or --password."
    elif isinstance(error, exceptions.TryAgainError) or (of_cluster and isinstance(error, exceptions.AskError)):
        kind, text = DatabaseLost, f"is moving the run to another node: {reason}"
    elif isinstance(error, exceptions.AskError):  # MOVED too
        text = "is a node of a cluster. Name it as one: redis+cluster://host:port/"
    elif not_now:
        kind, text = DatabaseLost, f"is not ready: {reason}"
    elif isinstance(error, LOST):
        kind, text = DatabaseLost, f"does not answer: {reason or type(error).__name__}"
    elif isinstance(error, redis.OutOfMemoryError):
        text = "is full. Lower --buffer-size, clear old runs, or give the server more maxmemory."
    elif isinstance(error, exceptions.NoPermissionError):
        commands = " ".join([*COMMANDS, *(CLUSTER_COMMANDS if of_cluster else ())])
        text = f"does not permit this: {reason}. A player or viewer may not; any other user needs {PREFIX}* and: {commands}"
    elif isinstance(error, redis.RedisError):
        text = f"refused: {reason}"
    else:
        text = f"holds something for this run that tinyverse did not write ({reason}). Remove the run: clear --force"
    return kind(f"{public(url)} {text}")
