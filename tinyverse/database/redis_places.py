"""Places: which one node holds a run's keys, where a URL names a Redis Cluster or the Sentinels of a server.

    redis+cluster://user:password@host:port,host:port/         any nodes of the cluster
    redis+sentinel://user:password@host:port,host:port/NAME    the sentinels that watch over the server NAME

and rediss+… with TLS. All keys of a run lie in one slot, so a run needs one node, found when a connection is made; when
the keys move, or another server is promoted, that counts as a lost connection, and the next one finds the new place.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import redis
from redis.connection import parse_url
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError
from redis.sentinel import Sentinel

SCHEMES = ("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
PORTS = {"cluster": 6379, "sentinel": 26379}


def is_one_of_several(url: str) -> bool:
    """Whether the URL names a cluster or sentinels."""
    return urllib.parse.urlsplit(url).scheme in SCHEMES


def nodes(url: str) -> list[str]:
    """The URLs of the nodes that a URL names, one by one; of an ordinary URL itself."""
    if not is_one_of_several(url):
        return [url]
    parts = urllib.parse.urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    user, at, places = parts.netloc.rpartition("@")
    found = []
    for place in places.split(","):
        with_port = place if place.rpartition(":")[2].isdigit() else f"{place}:{PORTS[kind]}"
        found.append(parts._replace(scheme=scheme, netloc=f"{user}{at}{with_port}").geturl())
    return found


def keepers(url: str) -> list[str]:
    """The URLs of the servers that keep users of their own: of a cluster all nodes that are named."""
    return nodes(url) if urllib.parse.urlsplit(url).scheme.endswith("+cluster") else [url]


def client(url: str, key: str, **options: Any) -> redis.Redis:
    """A client of the node that holds `key` ("" for any node), or of the server that the sentinels name.

    Raises:
        ValueError: the URL cannot be understood.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.endswith("+cluster"):
        several = [parse_url(node) for node in nodes(url)]
        places = [(one.pop("host", "localhost"), one.pop("port", 6379)) for one in several]
        secure = several[0].pop("connection_class", None) is not None
        pool = redis.ConnectionPool(
            connection_class=_SecureNodeConnection if secure else _NodeConnection,
            places=places, key=key, **{**several[0], **options},
        )  # fmt: skip
        return redis.Redis(connection_pool=pool)
    name = parts.path.strip("/")
    several = [parse_url(parts._replace(path="").geturl()) for parts in map(urllib.parse.urlsplit, nodes(url))]
    places = [(one.pop("host", "localhost"), one.pop("port", 26379)) for one in several]
    if not name:
        raise ValueError("the name of the watched server is missing")
    tls = {"ssl": True} if several[0].pop("connection_class", None) is not None else {}
    timeouts = {word: options[word] for word in ("socket_timeout", "socket_connect_timeout") if word in options}
    sentinel = Sentinel(places, sentinel_kwargs={**timeouts, **tls})
    return sentinel.master_for(name, **{**several[0], **options, **tls})


class _Node:
    """Connects to the node that holds `key`: any node either answers for it, or says who does."""

    def __init__(self, *, places: list[tuple[str, int]], key: str, **options: Any) -> None:
        self._places, self._key = places, key
        super().__init__(**options)

    def connect(self) -> None:
        if self._sock is not None:  # type: ignore[attr-defined]
            return
        lost: Exception = redis.ConnectionError("no node is named")
        for place in self._places:
            try:
                moved = self._ask(*place)
                if moved is not None:
                    self._join(*moved)
                return
            except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
                self.disconnect()  # type: ignore[attr-defined]
                if isinstance(error, redis.AuthenticationError):
                    raise
                lost = error
        raise redis.ConnectionError(f"no node of the cluster answers: {lost}")

    def _join(self, host: str, port: int) -> None:
        self.disconnect()  # type: ignore[attr-defined]
        self.host, self.port = host, port
        super().connect()  # type: ignore[misc]

    def _ask(self, host: str, port: int) -> tuple[str, int] | None:
        """Joins a node; where the key is, if it is elsewhere."""
        self._join(host, port)
        if not self._key:
            return None
        self.send_command("HGET", self._key, "epoch")  # type: ignore[attr-defined]
        try:
            super().read_response()  # type: ignore[misc]
        except MovedError as moved:
            return moved.host or host, moved.port
        except redis.ResponseError:  # of another type, or not permitted: it is here all the same
            pass
        return None

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except (MovedError, AskError, TryAgainError, ClusterDownError) as error:
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.ConnectionError(f"the run is moving to another node of the cluster ({error})") from error


class _NodeConnection(_Node, redis.Connection):
    pass


class _SecureNodeConnection(_Node, redis.SSLConnection):
    pass
