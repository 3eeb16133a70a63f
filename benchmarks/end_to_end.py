"""`tinyverse run` on Pong with all cores of this machine, beside other projects: steps played and learned per second.

    python benchmarks/end_to_end.py [--json] [--smoke] [--repeats N]        about 12 minutes

Everyone has the same network (the convolutions and 512 units of 2015, on 4 frames) and learns from every step once
(V-trace, A2C, APPO) or in 4 epochs of 4 minibatches (PPO). A run is started anew in each turn, and counted from when
all of it is at work.

ours                server, players, trainer, as the command starts them; --players K with the best K, found once, and
                    with PPO, whose trainer is the bottleneck, one player and --threads of all cores
limit               cores / (1 / player + 1 / trainer): both parts alone on one core, without a database between them
SB3 A2C, SB3 PPO    Stable-Baselines3, and
Sample Factory      its APPO, asynchronous: left out where peers.sh has not made their environments
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure

from tinyverse.core import system
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server_config import announcement
from tinyverse.experiment import loader

system.prepare()

import torch  # noqa: E402

from tinyverse.cli.play import acting  # noqa: E402
from tinyverse.player.player import Player  # noqa: E402
from tinyverse.replay.buffer import Replay  # noqa: E402
from tinyverse.replay.config import ReplayConfig  # noqa: E402
from tinyverse.replay.samplers import Fresh  # noqa: E402

PONG = measure.HERE / "experiments" / "pong.py"
NAME = "bench"
PPO = {"algorithm": "ppo", "unroll_length": 32, "publish_every": 1}  # 4 minibatches of 256, as Stable-Baselines3's
SMALL = {"num_envs": 4, "batch_size": 4}


class Alone:
    """Player and trainer of an experiment, each by itself in this process, without a database."""

    def __init__(self, file: Path, *, precision: str = "fp32", **settings: Any) -> None:
        module = loader.load_module(str(file))
        experiment = loader.build(module, settings)
        self.precision = precision
        player = acting(experiment.agent(), "cpu", precision)
        self.player = Player(player, experiment.pool(experiment.num_envs), experiment.unroll_length)
        agent = experiment.agent()
        self.learner = experiment.learner(agent)
        flow = ReplayConfig(batch_size=experiment.batch_size, buffer_size=experiment.batch_size + experiment.num_envs)
        self.batch = self._batch(Replay(experiment.spec(agent), flow, Fresh()))
        self.learn()  # the first time is slower

    def _batch(self, replay: Replay) -> Any:
        while (batch := replay.sample()) is None:
            for session in self.player.play().sessions("bench", 0):
                replay.add(session)
        return batch

    def play(self) -> float:
        rollout = self.player.play()
        return float(rollout.valid.size)

    def learn(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            self.learner.train_step(self.batch)
        return float(self.batch.valid.numel())

    def limit(self, cores: int, seconds: float) -> float:
        """Steps per second where the work of both is spread evenly over so many cores."""
        player, trainer = measure.rate_of(self.play, seconds), measure.rate_of(self.learn, seconds)
        return cores / (1 / player + 1 / trainer)


@contextlib.contextmanager
def running(players: int, threads: int | None, **settings: Any) -> Iterator[Callable[[], int]]:
    """`tinyverse run` in a folder of its own; yields what gives the updates made so far, 0 until all are at work."""
    words = [sys.executable, "-m", "tinyverse", str(PONG), "run", "--name", NAME, "--players", str(players), "--quiet"]
    words += ["--threads", str(threads)] if threads else []
    words += [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    with tempfile.TemporaryDirectory(prefix="tv") as folder, tempfile.TemporaryFile("w+") as log:
        env = {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}  # its own server
        process = subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)

        @functools.cache
        def database() -> RedisDatabase:
            return RedisDatabase(json.loads(announcement(Path(folder, "runs", NAME)).read_text())["url"], NAME)

        def updates() -> int:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{' '.join(words)} ended:\n{log.read()[-2000:]}")
            with contextlib.suppress(FileNotFoundError, ValueError):  # it does not say yet where its server is
                if sum(worker.sessions > 0 for worker in database().workers()) >= players:
                    return database().state().update
            return 0

        try:
            yield updates
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30.0)


def learned(players: int, seconds: float, warm: int, *, threads: int | None = None, **settings: Any) -> float:
    """Steps learned from per second, between two updates at least so many seconds apart."""
    with running(players, threads, **settings) as updates:
        (began, first) = _after(updates, warm)
        time.sleep(seconds)
        ended, last = _after(updates, updates() + 1)
    steps = settings.get("batch_size", 32) * settings.get("unroll_length", 20)
    return (last - first) * steps / (ended - began)


def _after(updates: Callable[[], int], wanted: int) -> tuple[float, int]:
    """When so many updates were made, and how many there were then."""
    gives_up = time.monotonic() + 120
    while (made := updates()) < wanted:
        if time.monotonic() > gives_up:
            raise RuntimeError(f"{made} updates in 2 minutes, wanted {wanted}.")
        time.sleep(0.05)
    return time.perf_counter(), made


def ours(bench: measure.Bench, **settings: Any) -> tuple[int, measure.Way]:
    """(players, way) with the number of players that short runs find best."""
    if bench.smoke:
        return 1, lambda: learned(1, 0.2, 1, **settings)
    if settings.get("algorithm") == "ppo":
        return 1, lambda: learned(1, 10.0, 4, threads=system.cores(), **settings)
    rates = {players: learned(players, 6.0, 10, **settings) for players in (1, 2, 3)}
    best = max(rates, key=lambda players: rates[players])
    return best, lambda: learned(best, 10.0, 15, **settings)


def limit(bench: measure.Bench, **settings: Any) -> measure.Way:
    cores = system.cores()

    @functools.cache
    def alone() -> Alone:
        return Alone(PONG, **settings)

    def way() -> float:
        with measure.on_core(0):  # its threads too, which are made when it is
            return alone().limit(cores, bench.seconds(3.0))

    return way


def peers(**commands: tuple[str, ...]) -> dict[str, measure.Way]:
    """The ways of those whose environments are there."""

    def way(words: tuple[str, ...]) -> measure.Way:
        return lambda: (measure.peer(*words) or {})["steps_per_second"]

    there = {name: words for name, words in commands.items() if (measure.PEERS / words[0]).exists()}
    return {name.replace("_", " "): way(words) for name, words in there.items()}


def compare(
    bench: measure.Bench, what: str, wanted: dict[str, float], others: dict[str, measure.Way], **settings: Any
) -> None:
    """All precisions and the others take turns; then a row for each precision."""
    ways, players = dict(others), {}
    for precision in wanted:
        players[precision], ways[f"ours {precision}"] = ours(bench, precision=precision, **settings)
        ways[f"limit {precision}"] = limit(bench, precision=precision, **settings)
    turns = measure.Bench("", smoke=bench.smoke, repeats=bench.repeats, quiet=True)
    rates = turns.compare("", ways, warm=False).rates
    for precision, faster in wanted.items():
        own = {name: rates[f"{name} {precision}"] for name in ("ours", "limit")}
        at_least = {"limit": 0.75, **dict.fromkeys(others, faster)}
        row = measure.Row(f"{what}, {precision}", "steps/s", own | {name: rates[name] for name in others}, at_least)
        row.note = f"--players {players[precision]}"
        bench.keep(row)


def main() -> None:
    with measure.session("end_to_end", __doc__ or "") as bench:
        torch.set_num_threads(1)
        if bench.smoke:
            compare(bench, "Pong, every step once", {"fp32": 2.2}, {}, **SMALL)
            return
        once, epochs = {"fp32": 2.2}, {"fp32": 1.8}
        if system.has_bfloat16():
            once["bf16"], epochs["bf16"] = 3.0, 1.8
        a2c = ("sb3", "sb3.py", "fps", "a2c", "pong", "--seconds", "10", "--threads", "2")
        appo = ("sample-factory", "sample_factory.py", "--seconds", "20")
        ppo = ("sb3", "sb3.py", "fps", "ppo", "pong", "--seconds", "10", "--threads", "2", "--processes")
        compare(bench, "Pong, every step once", once, peers(SB3_A2C=a2c, Sample_Factory=appo))
        compare(bench, "Pong, PPO with 4 epochs", epochs, peers(SB3_PPO=ppo), **PPO)


if __name__ == "__main__":
    main()
