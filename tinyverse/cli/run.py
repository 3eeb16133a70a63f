"""Together: players and trainer under one roof: `run` starts the processes of a whole run, `local` needs only its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np

from tinyverse.cli.context import Asked, positive
from tinyverse.cli.train import (
    Learning,
    aim,
    change_settings,
    check_learning,
    join,
    make_trainer,
    open_log,
    or_after,
    profiled,
    start_fresh,
    train_run,
    trainer_line,
)
from tinyverse.core import system
from tinyverse.core.errors import SettingsError, TinyverseError
from tinyverse.core.files import atomic_write
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.timing import Ticker
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import terminal
from tinyverse.monitoring.progress import Progress
from tinyverse.player.player import Player
from tinyverse.replay.samplers import Fresh
from tinyverse.trainer.run_folder import RunFolder
from tinyverse.trainer.trainer import Trainer


def do_local(asked: Asked, learning: Learning, *, games: int | None = None) -> Trainer:
    """Plays and trains in one process, in lockstep, without a server: lag is exactly 0 for the Fresh sampler."""
    check_learning(learning)
    positive(games=games)
    asked.load()
    database = MemoryDatabase()
    with asked.folder.alone(), stop_on_signals() as should_stop:
        system.set_threads(learning.threads or 1)
        began, should_stop = time.monotonic(), or_after(learning.minutes, should_stop)
        learning = dataclasses.replace(learning, precision=learning.precision or "fp32")
        trainer, experiment = make_trainer(asked, learning, database)
        batch = trainer.replay.config.batch
        count = games or min(batch, experiment.games)
        if isinstance(trainer.replay.sampler, Fresh) and batch % count:
            raise SettingsError(
                f"local with {count} games and batches of {batch} would learn from stale sessions; make -b a multiple of --games."
            )
        log = open_log(asked, learning, database, trainer)
        join(asked, trainer)
        seed = seed_after(asked.fresh_seed(), trainer.update)
        player = Player(trainer.agent, experiment.pool(count), experiment.unroll_length, seed=seed)
        saving, made, sequence = Ticker(learning.save_every, later=True), 0, 0
        with (
            profiled(asked, learning.profile),
            Progress(lambda: trainer_line(trainer), share=aim(trainer, learning, began), quiet=asked.quiet) as progress,
        ):
            try:
                while not should_stop() and (learning.updates is None or made < learning.updates):
                    player.version, player.update = trainer.version, trainer.update
                    sessions = player.play().sessions("local", sequence)
                    sequence += len(sessions)
                    database.append([session.encode() for session in sessions])
                    while trainer.feed():
                        pass
                    made += _learn_what_there_is(trainer, learning.updates, made)
                    log.turn()
                    progress.turn()
                    if saving.due():
                        trainer.save()
                trainer.check()
            finally:
                player.close()
                trainer.leave()
                log.close()
    return trainer


def seed_after(seed: int, update: int) -> int:
    """The players' seed of a run that goes on: other games than those it began with, and always the same ones."""
    return seed if update == 0 else int(np.random.SeedSequence([seed, update]).generate_state(1)[0] >> 1)


def _learn_what_there_is(trainer: Trainer, updates: int | None, made: int) -> int:
    """Updates until data or `updates` run out; of a replay that nothing else bounds (`reuse=None`) only one."""
    before = made
    while (updates is None or made < updates) and trainer.step():
        made += 1
        trainer.publisher.version += 1  # in lockstep each update is a version, though nobody fetches it
        if trainer.replay.config.reuse is None:
            break
    return made - before


def do_run(
    asked: Asked, learning: Learning, *, players: int = 1, games: int | None = None, **stepping: float | None
) -> Trainer:
    """Server, players, trainer and dashboard on this machine; whatever it started ends with it, however it ends.

    Args:
        stepping: more options of `play`, for every player.
    """
    check_learning(learning)
    positive(players=players, games=games, step_timeout=stepping.get("step_timeout"))
    asked.load()
    learning = dataclasses.replace(learning, threads=learning.threads or max(1, system.cores() - players))
    with contextlib.ExitStack() as stack:
        should_stop = stack.enter_context(stop_on_signals())
        own = not (asked.database or asked.names_server)
        if own:
            stack.enter_context(asked.folder.alone())
            asked = dataclasses.replace(asked, redis=stack.enter_context(redis_server.private_server()).url)
        database = stack.enter_context(asked.connected())
        if learning.resume is False:
            start_fresh(asked, database)
            learning = dataclasses.replace(learning, resume=None)
        if learning.force:
            change_settings(asked, database)  # before players agree to the old ones
        if own:
            stack.enter_context(_announced(asked.folder, asked.redis or ""))
        crew = stack.enter_context(_Players(asked, players, {"games": games, **stepping}))
        return train_run(asked, learning, database, lambda: should_stop() or crew.is_gone(), show=terminal.panel)


class _Players:
    """Player processes of `run`. They end when it ends, also when it is killed."""

    def __init__(self, asked: Asked, count: int, options: Mapping[str, float | None]) -> None:
        words = [sys.executable, "-m", "tinyverse", asked.experiment, "play", "--name", asked.run, "--quiet"]
        words += [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
        words += ["--database", asked.database] if asked.database else []
        seeds = [[] if asked.seed is None else ["--seed", str(asked.seed + 1 + index)] for index in range(count)]
        # the server's password goes through the environment: everyone can read the words of a command
        place = {
            "TINYVERSE_REDIS_URL": asked.server(start=True),
            "TINYVERSE_PARENT": str(os.getpid()),
            **system.python_path(),
        }
        self._processes = [
            subprocess.Popen(words + seed, env={**os.environ, **place}, start_new_session=True) for seed in seeds
        ]

    def is_gone(self) -> bool:
        """Whether no player is left; that one failed is an error, which its own output explains."""
        codes = [process.poll() for process in self._processes]
        if None not in codes and any(codes):
            raise TinyverseError(
                f"{counted(len(codes), 'player')} failed, and none is left (exit codes {codes}); see above for why."
            )
        return None not in codes

    def __enter__(self) -> _Players:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(8.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _announced(folder: RunFolder, url: str) -> Iterator[None]:
    """Lets `eval`, `info` and further players, started in the same folder, find the server of a `run`.

    Its URL has a password, so it lies beside the local server's, never in a run's folder, which people copy.
    """
    file = server_config.announcement(folder.path)
    atomic_write(file, json.dumps({"url": url}).encode(), private=True)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
