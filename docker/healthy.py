"""Healthy: whether this machine's worker is heard of in the run's database, for a container's probe.

    with-password python healthy.py RUN play|train

Exits 0 if it is, or if the server does not answer: the worker waits for the server, and a probe that restarted every
worker would make two outages of one. Exits 1 if it is not, 2 for wrong words. It imports no torch, unlike `info`, so
that a probe of many players costs little.
"""

import os
import socket
import sys

from tinyverse.core.errors import DatabaseLost, ServerError, TinyverseError
from tinyverse.database import server as redis_server
from tinyverse.database.redis import RedisDatabase


def healthy(run: str, role: str) -> bool:
    """Whether a worker of this host has sent a heartbeat lately.

    Raises:
        DatabaseLost: the server does not answer.
        ServerError: it refuses us, or none is named.
    """
    try:
        address = redis_server.find_server(password=os.environ.get("TINYVERSE_PASSWORD"), start=False)
    except ServerError as error:
        raise error.__cause__ if isinstance(error.__cause__, DatabaseLost) else error from None
    database = RedisDatabase(address.url, run)
    try:
        return any(worker.role == role and worker.host == socket.gethostname() for worker in database.workers())
    finally:
        database.close()


def main(words: list[str]) -> int:
    """The exit status; says why."""
    if len(words) != 2 or words[1] not in ("play", "train"):
        print(f"healthy: got {' '.join(words) or 'nothing'}, wanted: healthy.py RUN play|train", file=sys.stderr)
        return 2
    run, role = words
    try:
        there = healthy(run, role)
    except DatabaseLost as error:
        print(f"healthy: the server is away, which is no fault of this worker: {error}")
        return 0
    except TinyverseError as error:
        print(f"healthy: {error}", file=sys.stderr)
        return 1
    print(f"healthy: {role} of run {run} on {socket.gethostname()} is {'at work' if there else 'not heard of'}")
    return 0 if there else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
