"""Append and read of sessions through a server, by TCP and by unix socket: the client has one core, the server another.

    python benchmarks/database.py [--json] [--smoke] [--repeats N]

The same experience each time: 20 steps of Pong as the example's agent plays it, of CartPole, and of random floats that
do not compress (141 KB). The unit is sessions per second.

ours: `Session.encode` and `RedisDatabase.append` of 8 at once, with the worker's heartbeat; `RedisDatabase.read` of as
    many as a trainer reads, and `SessionSpec.decode`. Checks, counters and State included.
limit: the same compressed bytes by bare pipelined XADD and XRANGE, nothing encoded, decoded, counted or checked.
naive: the original's design. Images stacked by 4, joblib, one LPUSH a session (and an LTRIM every 8) or one LINDEX at a
    random index, a heartbeat before each by SET and EXPIRE: every command a round trip.
redis-benchmark: SET or GET of the floats' size, 8 in a pipeline (left out where neither it nor valkey-benchmark is).
reverb: the same un-stacked Pong sessions in Reverb's own server, run in turn with ours (peers/reverb.py).
stored: appends and reads with ever more sessions in the store, small ones so that 100,000 of them fit.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import measure
import numpy as np
import torch

from tinyverse import loader, machine
from tinyverse.database import BEGINNING
from tinyverse.player import Player, new_worker
from tinyverse.redis_database import RedisDatabase
from tinyverse.redis_server import Server, connect, private_server
from tinyverse.session import Session, SessionSpec
from tinyverse.trainer import READ_AT_ONCE

STEPS, AT_ONCE, FLOATS = 20, 8, 1680  # of an observation, so that a session has 141 KB
STORED = (100_000, 5_000, 100)
WANTED = {"Pong": {"naive": 10.0}, "CartPole": {"naive": 15.0}, "floats": {"redis-benchmark": 0.5}}


class Kind(NamedTuple):
    """Sessions of one kind, and how many of them the store keeps."""

    name: str
    spec: SessionSpec
    sessions: list[Session]
    kept: int


def main() -> None:
    with measure.session("database", __doc__) as bench, contextlib.ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        machine.prepare()
        torch.set_num_threads(1)
        with measure.on_core(1):
            server = stack.enter_context(private_server(listen=f"127.0.0.1:{free_port()}"))
        measure.pinned(0)
        kinds = [played("Pong", "atari", bench.smoke), played("CartPole", "cartpole", bench.smoke), floats(bench.smoke)]
        for kind, by in itertools.product(kinds, ("TCP", "unix")):
            compare(bench, kind, server, by)
        versus_reverb(bench, kinds[0], server, cores[0], cores[1 % len(cores)])
        by_stored(bench, kinds[1], server)


def compare(bench: measure.Bench, kind: Kind, server: Server, by: str) -> None:
    """Two rows: append and read of one kind of session."""
    url, admin = (server.tcp_url, admin_tcp(server)) if by == "TCP" else (server.url, server.admin_url)
    ours, naive, limit = ours_of(kind, url, by), naive_of(kind, admin), limit_of(kind, admin)
    for what in ("append", "read"):
        works = {"ours": ours[what], "limit": limit[what], "naive": naive[what]}
        ways = {name: timed(bench, work) for name, work in works.items()}
        wanted = dict(WANTED[kind.name])
        if kind.name == "floats" and (bare := redis_benchmark(bench, kind, server, by, what)):
            ways["redis-benchmark"] = bare
        else:
            wanted.pop("redis-benchmark", None)
        bench.compare(f"{kind.name}, {by}, {what}", ways, unit="sessions/s", at_least=wanted, warm=not bench.smoke)
    with connect(admin) as client:
        client.flushall()


def ours_of(kind: Kind, url: str, run: str) -> dict[str, Callable[[], int]]:
    database, worker = RedisDatabase(url, run), new_worker("play")
    fill(database, kind)
    batches = itertools.cycle(itertools.batched(kind.sessions, AT_ONCE) if False else in_batches(kind.sessions))
    position = BEGINNING

    def append() -> int:
        database.append([session.encode() for session in next(batches)], worker=worker)
        return AT_ONCE

    def read() -> int:
        nonlocal position
        entries, _ = database.read(position, READ_AT_ONCE)
        for _, blob in entries:
            kind.spec.decode(blob)
        position = entries[-1][0] if len(entries) == READ_AT_ONCE else BEGINNING
        return len(entries)

    return {"append": append, "read": read}
