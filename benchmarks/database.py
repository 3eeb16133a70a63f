"""Append and read of sessions through a server, by TCP and by unix socket: the client has one core, the server another.

    python benchmarks/database.py [--json] [--smoke] [--repeats N]

The same experience each time: 20 steps of Pong (`atari_pool`) as the example's agent plays it, of CartPole, and of
random floats, which hardly compress (141 KB). The unit is sessions per second.

ours: `Session.encode` and `RedisDatabase.append` of 32 at once, as a player of 32 environments does, with its heartbeat; `RedisDatabase.read` of as
    many as a trainer reads, and `SessionSpec.decode`. Checks, counters and State included.
limit: the same compressed bytes by bare pipelined XADD and XRANGE, nothing encoded, decoded, counted or checked.
naive: the original's design. Images stacked by 4, joblib, one LPUSH a session (and an LTRIM every 32) or one LINDEX at a
    random index, a heartbeat before each by SET and EXPIRE: every command a round trip.
redis-benchmark: SET or GET of the floats' size, 8 in a pipeline (left out where neither it nor valkey-benchmark is).
reverb: the same un-stacked Pong sessions in Reverb's own server, run in turn with ours (peers/reverb.py).
stored: appends and reads with ever more sessions in the store, small ones so that 100,000 of them fit.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import shutil
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import joblib
import measure
import numpy as np
import torch

from tinyverse.core import system
from tinyverse.core.session import Session, SessionSpec
from tinyverse.database.base import BEGINNING, new_worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import Server, private_server
from tinyverse.experiment import loader
from tinyverse.player.player import Player
from tinyverse.trainer.feeder import READ_AT_ONCE

STEPS, AT_ONCE, FEW = 20, 32, 32
FLOATS = 1680  # in an observation: 141 KB a session
NAIVE = {"Pong": 10.0, "CartPole": 15.0}  # what ours shall be at least, in units of the naive way


class Kind(NamedTuple):
    """Sessions of one kind, and how many of them the store keeps."""

    name: str
    spec: SessionSpec
    sessions: list[Session]
    kept: int


Works = dict[str, Callable[[], int]]  # "append" and "read": functions that return the sessions they did


def main() -> None:
    with measure.session("database", __doc__) as bench, contextlib.ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
        system.prepare()
        torch.set_num_threads(1)
        with measure.on_core(1):
            server = stack.enter_context(private_server(listen=f"127.0.0.1:{measure.free_port()}"))
        measure.pinned(0)
        pong, cartpole = played("Pong", "atari", bench.smoke), played("CartPole", "cartpole", bench.smoke)
        for kind in (pong, cartpole, floats(cartpole)):
            for by in ("TCP", "unix"):
                compare(bench, kind, server, by)
        versus_reverb(bench, pong, server, cores)
        by_stored(bench, cartpole, server)


def played(name: str, example: str, smoke: bool) -> Kind:
    experiment = loader.build(loader.load_module(example), {"unroll_length": STEPS})
    pool, agent = experiment.pool(AT_ONCE), experiment.agent()
    player = Player(agent, pool, STEPS)
    player.version = 0
    sessions = [session for part in range(1 if smoke else 4) for session in player.play().sessions("bench", part)]
    pool.close()
    return Kind(name, experiment.spec(agent), sessions, 64 if smoke else 512)


def floats(like: Kind) -> Kind:
    """Sessions like others but for their observations: random floats."""
    normal = np.random.default_rng(0).standard_normal

    def noisy(session: Session) -> Session:
        return Session({**session.arrays, "observations": normal((STEPS + 1, FLOATS), np.float32)}, session.metadata)

    fields = {**like.spec.fields, "observations": ((STEPS + 1, FLOATS), np.dtype(np.float32))}
    return Kind("floats", SessionSpec(fields), list(map(noisy, like.sessions[:32])), like.kept)


def compare(bench: measure.Bench, kind: Kind, server: Server, by: str) -> None:
    """Two rows: append and read of one kind of session."""
    url, admin = (server.tcp_url, admin_tcp(server)) if by == "TCP" else (server.url, server.admin_url)
    ours, limit, naive = ours_of(kind, filled(kind, url, by)), limit_of(kind, admin), naive_of(kind, admin)
    for what in ("append", "read"):
        ways = {name: timed(bench, way[what]) for name, way in {"ours": ours, "limit": limit, "naive": naive}.items()}
        wanted = {"naive": NAIVE[kind.name]} if kind.name in NAIVE else {}
        if kind.name == "floats" and (binary := shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")):
            ways["redis-benchmark"] = bare(bench, binary, kind, server, by, {"append": "set", "read": "get"}[what])
            wanted["redis-benchmark"] = 0.5
        bench.compare(f"{kind.name}, {by}, {what}", ways, unit="sessions/s", at_least=wanted, warm=not bench.smoke)
    with connect(admin) as client:
        client.flushall()


def timed(bench: measure.Bench, work: Callable[[], int]) -> measure.Way:
    return lambda: measure.rate_of(work, 0.02 if bench.smoke else 0.4)


def ours_of(kind: Kind, database: RedisDatabase) -> Works:
    worker, batches, cursor = new_worker("play"), itertools.cycle(in_batches(kind.sessions)), BEGINNING

    def append() -> int:
        batch = next(batches)
        database.append([session.encode() for session in batch], worker=worker)
        return len(batch)

    def read() -> int:
        nonlocal cursor
        entries, _ = database.read(cursor, READ_AT_ONCE)
        for _, blob in entries:
            kind.spec.decode(blob)
        cursor = entries[-1][0] if len(entries) == READ_AT_ONCE else BEGINNING
        return len(entries)

    return {"append": append, "read": read}


def filled(kind: Kind, url: str, run: str) -> RedisDatabase:
    """A database that keeps `kind.kept` sessions, and has them."""
    database = RedisDatabase(url, run)
    database.create({"spec": kind.spec.to_json()})
    database.report(capacity=kind.kept)
    blobs = itertools.cycle(session.encode() for session in kind.sessions)
    for _ in range(kind.kept // AT_ONCE + 1):
        database.append(list(itertools.islice(blobs, AT_ONCE)))
    return database


def limit_of(kind: Kind, url: str) -> Works:
    client = connect(url)
    batches = itertools.cycle(in_batches([session.encode() for session in kind.sessions]))

    def append() -> int:
        pipe, batch = client.pipeline(transaction=False), next(batches)
        for blob in batch:
            pipe.xadd("limit", {b"s": blob}, maxlen=kind.kept)
        return len(pipe.execute())

    def read() -> int:
        return len(client.xrange("limit", count=READ_AT_ONCE))

    for _ in range(kind.kept // AT_ONCE + 1):
        append()
    return {"append": append, "read": read}


def naive_of(kind: Kind, url: str) -> Works:
    client, sessions = connect(url), itertools.cycle(map(as_before, kind.sessions))
    appended = itertools.count(1)

    def beat() -> None:
        client.set("beat", b"play")
        client.expire("beat", 30)

    def append() -> int:
        beat()
        buffer = io.BytesIO()
        joblib.dump(next(sessions), buffer)
        client.lpush("naive", buffer.getvalue())
        if next(appended) % AT_ONCE == 0:
            client.ltrim("naive", 0, kind.kept - 1)
        return 1

    def read() -> int:
        beat()
        # executes what it reads, as the original did: here only what `append` above wrote, to a server of this script's own
        joblib.load(io.BytesIO(client.lindex("naive", random.randrange(kind.kept))))
        return 1

    for _ in range(kind.kept):
        append()
    return {"append": append, "read": read}


def as_before(session: Session) -> tuple[np.ndarray, ...]:
    """A session as the original held it: as many rows of observations as of actions, images stacked by 4."""
    rows, state = session.observations[:-1], session.initial_state
    if rows.ndim == 3:
        frames = np.concatenate([*state.values(), rows])
        rows, state = np.moveaxis(np.lib.stride_tricks.sliding_window_view(frames, 4, axis=0), -1, 1), ()
    return np.ascontiguousarray(rows), session.actions, session.rewards, session.valid, state


def bare(bench: measure.Bench, binary: str, kind: Kind, server: Server, by: str, command: str) -> measure.Way:
    """The rate of redis-benchmark for values as long as a session."""
    size, count = len(kind.sessions[0].encode()), 100 if bench.smoke else 5000
    admin = urllib.parse.urlsplit(server.admin_url)
    host, _, port = urllib.parse.urlsplit(server.tcp_url).netloc.rpartition("@")[2].partition(":")
    place = ["-h", host, "-p", port] if by == "TCP" else ["-s", urllib.parse.unquote(admin.path)]
    words = f"-c 1 -P 8 -n {count} -d {size} --csv -t {command} --user {admin.username} -a {admin.password}"

    def way() -> float:
        done = subprocess.run([binary, *place, *words.split()], capture_output=True, text=True, check=True, timeout=60)
        return float(done.stdout.strip().splitlines()[-1].split(",")[1].strip('"'))

    return way


def versus_reverb(bench: measure.Bench, kind: Kind, server: Server, cores: list[int]) -> None:
    """Two rows, measured in the same turns: Reverb takes a while to start, so it does both at once."""
    ours, seconds = ours_of(kind, filled(kind, server.tcp_url, "reverb")), 0.1 if bench.smoke else 0.5
    rows = {
        "append": measure.Row("Pong beside Reverb, append", "sessions/s", {}, {}),
        "read": measure.Row("Pong beside Reverb, read", "sessions/s", {}, {"dataset": 1.3, "sample": 4.0}),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions.npz"
        columns = {name: [session.arrays[name] for session in kind.sessions] for name in kind.spec.fields}
        np.savez(path, **{name: np.stack(arrays) for name, arrays in columns.items()})
        words = [str(path), str(seconds), str(cores[0]), str(cores[1 % len(cores)])]
        for _ in range(bench.repeats):
            theirs = measure.peer("reverb", "reverb.py", *words)
            if theirs is None:
                return
            for what, row in rows.items():
                for name, rate in {"ours": measure.rate_of(ours[what], seconds), **theirs[what]}.items():
                    row.rates.setdefault(name, []).append(rate)
    for row in rows.values():
        bench.keep(row)


def by_stored(bench: measure.Bench, kind: Kind, server: Server) -> None:
    """Two rows: the rate with the most sessions stored, to those with fewer."""
    counts = [max(2 * FEW, count // 100) if bench.smoke else count for count in (100_000, 5_000, 100)]
    names = ["ours", *(f"{count:,} stored" for count in counts[1:])]
    works = [ours_anywhere(kind._replace(kept=count), server.tcp_url, f"stored-{count}") for count in counts]
    for what in ("read", "append"):
        ways = {name: timed(bench, work[what]) for name, work in zip(names, works, strict=True)}
        bench.compare(
            f"{kind.name}, TCP, {what} with {counts[0]:,} stored", ways, unit="sessions/s",
            at_least={names[-1]: 1 / 1.1}, warm=not bench.smoke,
        )  # fmt: skip


def ours_anywhere(kind: Kind, url: str, run: str) -> Works:
    """As `ours_of`, but reading a few sessions from a random place on."""
    database = filled(kind, url, run)
    cursor, cursors = BEGINNING, [BEGINNING]
    while entries := database.read(cursor, READ_AT_ONCE)[0]:
        cursor = entries[-1][0]
        cursors += [key for key, _ in entries]
    starts = cursors[: -FEW - 1] or cursors[:1]

    def read() -> int:
        entries, _ = database.read(random.choice(starts), FEW)
        for _, blob in entries:
            kind.spec.decode(blob)
        return len(entries)

    return {**ours_of(kind, database), "read": read}


def in_batches(items: list) -> list[list]:
    return [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]


def admin_tcp(server: Server) -> str:
    """The administrator's URL by TCP: the naive way and the limit need other commands and keys than tinyverse has."""
    admin = urllib.parse.urlsplit(server.admin_url)
    return f"redis://{admin.username}:{admin.password}@{server.tcp_url.rpartition('@')[2]}"


if __name__ == "__main__":
    main()
