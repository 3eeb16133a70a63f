"""Watching: what it costs a player that somebody looks at its game.

    python benchmarks/watching.py [--json] [--smoke] [--repeats N]

A player of Pong (the Atari example, 16 games) has a core to itself and pushes to a real server on the other, where
`tinyverse atari watch` and a viewer are too. The viewer asks as the page does: it reads the stream of events, and every
second what is new of the first game, with pictures, values and chances.

ours          steps played per second while the game is watched
nobody looks  the same with neither page nor viewer
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import measure

from tinyverse.core import system

if __name__ == "__main__":  # before torch is imported, as the command line does
    system.prepare()

from tinyverse.cli.context import RunContext
from tinyverse.core.run_config import run_config
from tinyverse.core.weights import encode_weights
from tinyverse.database.base import new_worker
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server
from tinyverse.experiment import loader
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader

HOLDER = "bench"
LOOKS = 1.0  # seconds between two looks at the game: no page asks more often


def main() -> None:
    with measure.session("watching", __doc__) as bench, contextlib.ExitStack() as stack:
        system.set_threads(1)
        with measure.on_core(1):
            server = stack.enter_context(private_server())
        context = RunContext("atari", name="watched", redis=server.url, quiet=True)
        experiment = loader.build(context.module, context.resolved({}))
        agents = [experiment.agent() for _ in range(2)]
        database = RedisDatabase(server.url, context.run)
        database.create(run_config("atari", context.resolved({}), experiment.spec(agents[0])))
        database.report(capacity=experiment.buffer_size)
        database.acquire_lease(HOLDER)
        database.put_weights(encode_weights(agents[0].get_weights(), version=0, update=0, step=0), 0, holder=HOLDER)
        player = Player(agents[0], experiment.pool(4 if bench.smoke else 16), experiment.unroll_length)
        player.version = 0
        seen = list[int]()

        def played() -> float:
            uploader = Uploader(database, new_worker("play", num_envs=player.num_envs), agents[1])
            uploader.start()
            with measure.on_core(0):
                rate = measure.rate_of(
                    lambda: play(player, uploader, batches=1) * player.num_envs * experiment.unroll_length,
                    bench.seconds(15.0),
                )
            uploader.close()
            return rate

        def watched() -> float:
            with measure.on_core(1), page(server.url) as url, viewer(url, database) as looks:
                rate = played()
            seen.append(len(looks))
            return rate

        row = bench.compare(
            "Pong, 16 games", {"ours": watched, "nobody looks": played}, at_least={"nobody looks": 0.97}
        )
        row.note = f"{seen} looks at the game"


@contextlib.contextmanager
def page(url: str) -> Iterator[str]:
    """The verb itself, as a process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tinyverse", "atari", "watch", "--name", "watched", "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "TINYVERSE_REDIS_URL": url}
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1]
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def viewer(url: str, database: RedisDatabase) -> Iterator[list[int]]:
    """Looks until the end; yields the steps that each look showed."""
    over, looks = threading.Event(), list[int]()

    def ask(path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{url.rstrip('/')}/{path}", timeout=30) as answer:
            return json.load(answer)

    def look() -> None:
        after = ""
        while not over.wait(LOOKS):
            players = [worker.id for worker in database.workers() if worker.role == "play"]
            if players:
                frames = ask(f"frames?player={players[-1]}&env=0&after={after}")
                after = frames["id"] or after
                looks.extend([len(frames["steps"])] * bool(frames["steps"]))

    def listen() -> None:
        with urllib.request.urlopen(f"{url.rstrip('/')}/events", timeout=30) as events:
            while not over.is_set():
                events.readline()

    threads = [threading.Thread(target=work) for work in (look, listen)]
    for thread in threads:
        thread.start()
    try:
        yield looks
    finally:
        over.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
