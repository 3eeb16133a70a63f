"""Weights through a server: to publish and to load them, and what loading costs a player that goes on stepping.

    python benchmarks/weights.py [--json] [--smoke] [--repeats N]

The client has one core, the server another. Publications and loads per second of float32 weights, by TCP and by unix
socket:

ours: `encode_weights`, the lease taken as a trainer does, and `RedisDatabase.put_weights`; `RedisDatabase.get_weights`,
    `decode_weights` and `Agent.set_weights`. Checksums and fences included.
raw: a SET or GET of the same bytes by the same client library.

Then a player of the Atari example (Pong, Nature's network, its uploader in a thread) on the first core:

ours: while a process on the second core publishes new weights every second.
no loading: while it does not. Steps per second at the 99th percentile (1 / the time that 1 step in 100 exceeds), at the
    median, and on average; a step is from one `Agent.act` to the next, whatever lies between: environment, copies,
    exchange of agents, and the uploader's encoding and pushing.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from typing import Any

import measure
import numpy as np

from tinyverse.core import system

if __name__ == "__main__":  # before torch is imported, as the command line does
    system.prepare()

from gymnasium import spaces

from tinyverse.agents.agent import Agent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.cli.play import acting
from tinyverse.core.weights import Weights, decode_weights, encode_weights
from tinyverse.database.base import new_worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.networks import MLP, ModularNetwork
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader

RUN, EVERY = "stepping", 1.0  # seconds between two publications


def main() -> None:
    with measure.session("weights", __doc__) as bench, contextlib.ExitStack() as stack:
        system.set_threads(1)
        with measure.on_core(1):
            server = stack.enter_context(private_server(listen=f"127.0.0.1:{measure.free_port()}"))
            publishing = stack.enter_context(publisher(server.tcp_url, bench.smoke))
        measure.pinned(0)
        for agent in [atari(bench.smoke).agent(), *([] if bench.smoke else [large_agent()])]:
            for by, url in (("TCP", server.tcp_url), ("unix", server.url)):
                compare(bench, agent, url, by)
        pauses(bench, server.tcp_url, publishing)


def atari(smoke: bool) -> Experiment:
    settings = {"network": "small", "unroll_length": 8} if smoke else {"network": "nature"}
    return loader.build(loader.load_module("atari"), settings)


def large_agent() -> TorchAgent:
    """An agent of 5 million parameters."""
    space = spaces.Box(-1.0, 1.0, (384,), np.float32)
    return TorchAgent(ModularNetwork(space, spaces.Discrete(6), trunk=MLP(2048, 2048)))


def compare(bench: measure.Bench, agent: Agent, url: str, by: str) -> None:
    """Two rows: publishing and loading one agent's weights."""
    weights, client = agent.get_weights(), connect(url)
    size = sum(array.size for array in weights.values())
    database = RedisDatabase(url, f"{by}-{size}")
    blob, versions = encode_weights(weights, version=0, update=0, step=0), itertools.count()

    def load() -> int:
        found = database.get_weights()
        assert found is not None
        agent.set_weights(decode_weights(found[1])[0])
        return 1

    works: dict[str, dict[str, Callable[[], int]]] = {
        "publish": {
            "ours": lambda: put(database, weights, next(versions)),
            "raw": lambda: bool(client.set("tv:raw", blob)),
        },
        "load": {"ours": load, "raw": lambda: bool(client.get("tv:raw"))},
    }
    for what, ways in works.items():
        rates = {
            name: (lambda work=work: measure.rate_of(work, 0.02 if bench.smoke else 0.6)) for name, work in ways.items()
        }
        title = f"{size / 1e6:.1f} million parameters, {by}, {what}"
        bench.compare(title, rates, unit="times/s", at_least={"raw": 1 / 1.5}, warm=not bench.smoke)
    database.clear()


def pauses(bench: measure.Bench, url: str, publishing: Event) -> None:
    """Three rows: the time of a step with and without weights being loaded, its 99th percentile first."""
    seconds, num_envs = (0.3, 4) if bench.smoke else (8.0, 16)
    measures = {"99th percentile": lambda times: np.quantile(times, 0.99), "median": np.median, "average": np.mean}
    rows = {
        name: measure.Row(f"Pong, a step, {name}", "steps/s", {"ours": [], "no loading": []}, {}) for name in measures
    }
    rows["99th percentile"].at_least["no loading"] = 1 / 1.2
    versions = {"ours": 0, "no loading": 0}
    with stepping(url, atari(bench.smoke), num_envs, seconds, publishing) as steps:
        for turn in range(bench.repeats):
            for way in list(versions)[:: 1 if turn % 2 == 0 else -1]:
                (publishing.set if way == "ours" else publishing.clear)()
                times, loaded = steps()
                versions[way] += loaded
                for name, row in rows.items():
                    row.rates[way].append(num_envs / float(measures[name](times)))
    rows["99th percentile"].note = "{ours} versions loaded, and {no loading}.".format(**versions)
    for row in rows.values():
        bench.keep(row)


@contextlib.contextmanager
def stepping(
    url: str, experiment: Experiment, num_envs: int, seconds: float, publishing: Event
) -> Iterator[Callable[[], tuple[np.ndarray, int]]]:
    """A player at work whenever the function is called, which gives its steps' seconds and the versions it loaded."""
    acts: list[float] = []
    agents = [acting(experiment.agent(), "cpu", experiment.precision) for _ in range(2)]
    pool = experiment.pool(num_envs)
    for agent in agents:
        agent.act = stamped(agent.act, acts)  # type: ignore[method-assign]
    player = Player(agents[0], pool, experiment.unroll_length)
    uploader = Uploader(RedisDatabase(url, RUN), new_worker("play", num_envs=num_envs), agents[1])
    uploader.start()
    publishing.set()
    play(player, uploader, batches=2)

    def play_for(seconds: float) -> None:
        ends = time.perf_counter() + seconds
        play(player, uploader, should_stop=lambda: time.perf_counter() > ends)

    def steps() -> tuple[np.ndarray, int]:
        play_for(min(seconds, 1.5 * EVERY))  # what was published before has come by then
        before = player.version
        acts.clear()
        play_for(seconds)
        return np.diff(acts), player.version - before

    yield steps
    uploader.close()
    pool.close()


def stamped(act: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def noting(*words: Any) -> Any:
        times.append(time.perf_counter())
        return act(*words)

    return noting


@contextlib.contextmanager
def publisher(url: str, smoke: bool) -> Iterator[Event]:
    """A process that publishes new weights every second while the event is set."""
    context = multiprocessing.get_context("spawn")
    publishing, ending = context.Event(), context.Event()
    process = context.Process(target=publish_often, args=(url, smoke, publishing, ending), daemon=True)
    process.start()
    try:
        yield publishing
    finally:
        ending.set()
        process.join(10.0)


def publish_often(url: str, smoke: bool, publishing: Event, ending: Event) -> None:
    system.set_threads(1)
    database, weights, version = RedisDatabase(url, RUN), atari(smoke).agent().get_weights(), -1
    while not ending.wait(0.2 if smoke else EVERY):
        if publishing.is_set():
            version += 1
            put(database, weights, version)


def put(database: RedisDatabase, weights: Weights, version: int) -> int:
    """Publishes as a trainer does."""
    blob = encode_weights(weights, version=version, update=version, step=version)
    database.acquire_lease("bench")
    database.put_weights(blob, version, holder="bench", update=version, step=version)
    return 1


if __name__ == "__main__":
    main()
