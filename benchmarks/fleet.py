"""Thousands of players against one server: what arrives, how soon it is confirmed, what it costs the server.

    python benchmarks/fleet.py [--json] [--smoke] [--repeats N]

Players are connections of this one process (asyncio) that play nothing. Each sends, byte for byte, what `RedisDatabase`
sends for a player of 16 environments at 50 steps/s each (800 steps/s): every 0.4 s a push of 16 Pong sessions of 20 steps (of
`atari_pool`, played once, encoded and packed), with its own heartbeat, and reads all of the answer. Every 50th push it
loads the weights of the Atari example, as `play -s 50` does where there are always newer ones. One more connection reads
every session, as a trainer does (bare XRANGE, nothing decoded). Who has no answer yet does not push.

Server and connections have a core each, and meet over TCP on loopback. Rows, for so many players:

sessions: those confirmed per second. asked: what as many players of that rate push where nothing holds them up. The note
    says what was left of the two cores, of which the connections' is not the server's wall but this script's.
sessions per second of the server's processor: what a core of it could take, were it busy with nothing else.
bytes: through the server's sockets, per player, in and out (the reader's share, which leaves once, is taken off).
pushes per second of waiting: 1 / the latency of a push at the median and the 99th percentile.
heartbeats alone: the same players, who push no session.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import resource
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import hiredis
import measure
import redis

from tinyverse.core import system

if __name__ == "__main__":  # before torch is imported, as the command line does
    system.prepare()

from tinyverse.core.weights import encode_weights
from tinyverse.database.base import new_worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.schema import Keys
from tinyverse.database.server import Server, private_server
from tinyverse.experiment import loader
from tinyverse.player.player import Player
from tinyverse.trainer.feeder import READ_AT_ONCE

RUN, HOLDER = "fleet", "bench"
NUM_ENVS, STEPS, SPEED = 16, 20, 800  # of each player: environments, steps of a session, steps per second
EVERY = NUM_ENVS * STEPS / SPEED  # seconds between two pushes
LOOKS = 50  # pushes between two loads of weights
TURNS = 3  # at most, of each number of players
PLAYERS = (100, 500, 1000, 2000)


class Script(NamedTuple):
    """What a player sends, and how many answers each request has."""

    hello: bytes
    push: bytes
    push_answers: int
    load: bytes
    load_answers: int
    sessions: int  # in a push
    identity: bytes  # in `push`; each player has its own of the same length
    weights: int  # bytes that a load brings


class Seen(NamedTuple):
    """What became of one turn, per second where not said otherwise."""

    sessions: float
    read: float
    loads: float
    bytes_in: float
    bytes_out: float
    server: float  # share of a core
    client: float
    memory: float  # bytes the server takes
    latencies: list[float]  # seconds
    refused: int  # answers that were errors


def main() -> None:
    with measure.session("fleet", __doc__) as bench, contextlib.ExitStack() as stack:
        counts, seconds = ((5, 20), 0.3) if bench.smoke else (PLAYERS, 6.0)
        allow_files(4 * counts[-1] + 1000)
        system.set_threads(1)
        with measure.on_core(1):
            server = stack.enter_context(private_server(listen=f"127.0.0.1:{measure.free_port()}"))
        measure.pinned(0)
        scripts = written(server, bench.smoke)
        turns = 1 if bench.smoke else min(bench.repeats, TURNS)
        for count in counts:
            seen = [asyncio.run(turn(server, scripts["push"], count, seconds)) for _ in range(turns)]
            rows_of(bench, count, seen, scripts["push"])
        alone = [asyncio.run(turn(server, scripts["heartbeat"], counts[-1], seconds)) for _ in range(turns)]
        keep(bench, f"{counts[-1]:,} players, heartbeats alone", "pushes/s of a core", alone,
             lambda one: len(one.latencies) / seconds / one.server, note=told(alone))  # fmt: skip


def rows_of(bench: measure.Bench, count: int, seen: list[Seen], script: Script) -> None:
    who, asked = f"{count:,} players", count * SPEED / STEPS
    rates = {"ours": [one.sessions for one in seen], "asked": [asked] * len(seen)}
    bench.keep(measure.Row(f"{who}, sessions", "sessions/s", rates, {}, told(seen)))
    keep(
        bench,
        f"{who}, sessions per second of the server's core",
        "sessions",
        seen,
        lambda one: one.sessions / one.server,
    )
    keep(bench, f"{who}, bytes of each to the server", "bytes/s", seen, lambda one: one.bytes_in / count,
         f"A push is {len(script.push):,} bytes.")  # fmt: skip
    keep(bench, f"{who}, bytes of each from the server", "bytes/s", seen, lambda one: one.bytes_out / count,
         f"Weights are {script.weights:,} bytes.")  # fmt: skip
    for name, quantile in (("median", 50), ("99th percentile", 99)):
        keep(bench, f"{who}, 1 / latency of a push, {name}", "pushes/s", seen,
             lambda one, at=quantile - 1: 1 / percentiles(one)[at])  # fmt: skip


def keep(
    bench: measure.Bench, what: str, unit: str, seen: list[Seen], rate: Callable[[Seen], float], note: str = ""
) -> None:
    bench.keep(measure.Row(what, unit, {"ours": [rate(one) for one in seen]}, {}, note))


def percentiles(seen: Seen) -> list[float]:
    return (
        statistics.quantiles(seen.latencies or [1.0], n=100, method="inclusive")
        if len(seen.latencies) > 1
        else [1.0] * 99
    )


def told(seen: list[Seen]) -> str:
    """What the rates do not say."""

    def middle(value: Callable[[Seen], float]) -> float:
        return statistics.median(map(value, seen))

    latency = [1000 * middle(lambda one, at=at: percentiles(one)[at]) for at in (49, 98)]
    return (
        f"Server {middle(lambda one: one.server):.0%} of its core, connections {middle(lambda one: one.client):.0%} of theirs; "
        f"{middle(lambda one: one.memory) / 1e6:.0f} MB; latency {latency[0]:.1f} ms, 1 in 100 above {latency[1]:.1f} ms; "
        f"{middle(lambda one: one.read):,.0f} sessions/s read, {middle(lambda one: one.loads):.1f} loads/s; "
        f"{sum(one.refused for one in seen)} refused."
    )


# What players send


def written(server: Server, smoke: bool) -> dict[str, Script]:
    """Makes the run, and writes down what a player of it sends: a push of its sessions, or a heartbeat alone."""
    experiment = loader.build(loader.load_module("atari"), {"unroll_length": STEPS})
    pool, agent = experiment.pool(2 if smoke else NUM_ENVS), experiment.agent()  # an environment takes a while to load
    player, worker = Player(agent, pool, STEPS), new_worker("play", num_envs=NUM_ENVS)
    for _ in range(1 if smoke else 10):  # past the first frames, which are all alike
        sessions = player.play().sessions(worker.id, 0)
    pool.close()
    database = RedisDatabase(server.tcp_url, RUN)
    database.create({"spec": experiment.spec(agent).to_json()})
    database.acquire_lease(HOLDER)
    weights = encode_weights(agent.get_weights(), version=0, update=0, step=0)
    database.put_weights(weights, 0, holder=HOLDER)
    database.report(capacity=5000, max_ahead=None)
    blobs = [sessions[at % len(sessions)].encode() for at in range(NUM_ENVS)]
    worker.uptime, worker.steps_per_second, worker.stages = 100.0, float(SPEED), {"environment": 0.6, "act": 0.3}
    load = recorded(database.get_weights)
    hello = packed(("AUTH", *credentials(server)))

    def script(call: Callable[[], Any], count: int) -> Script:
        request = recorded(call)
        identity = worker.id.encode()
        return Script(hello, request, commands(request), load, commands(load), count, identity, len(weights))

    return {
        "push": script(lambda: database.append(blobs, worker=worker), NUM_ENVS),
        "heartbeat": script(lambda: database.append([], worker=worker), 0),
    }


def recorded(call: Callable[[], Any]) -> bytes:
    """The bytes that a call sends to a server."""
    sent, send = bytearray(), redis.Connection.send_packed_command

    def noted(self: Any, command: Any, *arguments: Any, **options: Any) -> Any:
        for part in [command] if isinstance(command, (bytes, str)) else command:
            sent.extend(part.encode() if isinstance(part, str) else part)
        return send(self, command, *arguments, **options)

    with mock.patch.object(redis.Connection, "send_packed_command", noted):
        call()
    return bytes(sent)


def commands(request: bytes) -> int:
    """How many answers a request has: a command is an array, as an answer may be."""
    reader = hiredis.Reader()
    reader.feed(request)
    return sum(1 for _ in iter(reader.gets, False))


def packed(*all_commands: tuple[Any, ...]) -> bytes:
    return b"".join(hiredis.pack_command(command) for command in all_commands)


def credentials(server: Server) -> tuple[str, str]:
    user, _, password = server.tcp_url.partition("://")[2].partition("@")[0].partition(":")
    return user, password


# Connections


class Link(asyncio.Protocol):
    """A connection that asks one thing at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.loop = fleet, asyncio.get_running_loop()
        self._reader, self._owed, self._done = hiredis.Reader(), 0, lambda reply: None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        sender = transport.get_extra_info("socket")
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ask(self.fleet.script.hello, 1, self.begin)

    def ask(self, request: bytes, answers: int, done: Callable[[Any], None]) -> None:
        """Sends, and calls `done` with the last of so many answers."""
        self._owed, self._done = answers, done
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            replies = reply if isinstance(reply, list) else [reply]  # EXEC's are those of all its commands
            self.fleet.refused += sum(isinstance(one, hiredis.ReplyError) for one in replies)
            self._owed -= 1
            if self._owed == 0 and not self.fleet.over:
                self._done(reply)

    def begin(self, reply: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._transport.abort()


class FakePlayer(Link):
    """Pushes every 0.4 s, and at every 50th push loads weights."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        super().__init__(fleet)
        script = fleet.script
        identity = b"play-%012x" % number
        assert len(identity) == len(script.identity)
        self._push = script.push.replace(script.identity, identity)
        self._until_load = random.randrange(LOOKS)

    def begin(self, reply: Any) -> None:
        self._due = self.loop.time() + random.random() * EVERY
        self.loop.call_at(self._due, self.push)

    def push(self) -> None:
        self._began = self.loop.time()
        self.ask(self._push, self.fleet.script.push_answers, self.pushed)

    def pushed(self, reply: Any) -> None:
        fleet, now = self.fleet, self.loop.time()
        fleet.latencies.append(now - self._began)
        self._until_load -= 1
        if self._until_load < 0:
            self._until_load = LOOKS - 1
            self.ask(fleet.script.load, fleet.script.load_answers, self.loaded)
        else:
            self.wait()

    def loaded(self, reply: Any) -> None:
        self.fleet.loads += 1
        self.wait()

    def wait(self) -> None:
        self._due = max(self._due + EVERY, self.loop.time())
        self.loop.call_at(self._due, self.push)


class FakeTrainer(Link):
    """Reads every session that comes."""

    def begin(self, reply: Any) -> None:
        self._after = "0-0"
        self.ask(packed(("XREVRANGE", self.fleet.sessions_key, "+", "-", "COUNT", 1)), 1, self.read)

    def again(self) -> None:
        request = ("XRANGE", self.fleet.sessions_key, f"({self._after}", "+", "COUNT", READ_AT_ONCE)
        self.ask(packed(request), 1, self.read)

    def read(self, entries: Any) -> None:
        if entries:
            self._after = entries[-1][0].decode()
            self.fleet.read += len(entries)
            self.fleet.bytes_read += sum(len(fields[1]) for _, fields in entries)
        self.loop.call_later(0.0 if len(entries) == READ_AT_ONCE else 0.02, self.again)


class Fleet:
    """All connections of a turn, and what they count."""

    def __init__(self, script: Script) -> None:
        self.script, self.sessions_key, self.over = script, Keys(RUN).sessions, False
        self.refused = 0
        self.forget()

    def forget(self) -> None:
        self.latencies: list[float] = []
        self.read = self.loads = self.bytes_read = 0


async def turn(server: Server, script: Script, count: int, seconds: float) -> Seen:
    """Lets so many players come, and after a while measures for so many seconds."""
    fleet, loop = Fleet(script), asyncio.get_running_loop()
    place = server.tcp_url.rpartition("@")[2].partition("/")[0].partition(":")
    links: list[Link] = []
    with contextlib.closing(connect(server.admin_url, timeout=60.0)) as admin:
        for made in itertools.chain(
            [lambda: FakeTrainer(fleet)], (lambda n=n: FakePlayer(fleet, n) for n in range(count))
        ):
            links.append((await loop.create_connection(made, place[0], int(place[2])))[1])
        gc.collect()
        gc.disable()
        admin.info()
        await asyncio.sleep(max(2 * EVERY, seconds / 3))
        fleet.forget()
        before, began, cpu = admin.info(), time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        passed, cpu, after = time.perf_counter() - began, time.process_time() - cpu, admin.info()
        gc.enable()
    fleet.over = True
    for link in links:
        link.close()
    await asyncio.sleep(0.1)

    def grown(*names: str) -> float:
        return sum(after[name] - before[name] for name in names) / passed

    return Seen(
        sessions=len(fleet.latencies) * script.sessions / passed, read=fleet.read / passed, loads=fleet.loads / passed,
        bytes_in=grown("total_net_input_bytes"), bytes_out=grown("total_net_output_bytes") - fleet.bytes_read / passed,
        server=grown("used_cpu_sys", "used_cpu_user"), client=cpu / passed, memory=after["used_memory_rss"],
        latencies=fleet.latencies, refused=fleet.refused,
    )  # fmt: skip


def allow_files(wanted: int) -> None:
    """Raises the number of files this process, and the server it starts, may have open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


if __name__ == "__main__":
    main()
