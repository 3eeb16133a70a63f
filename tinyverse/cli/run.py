"""The command `run`: server, players, trainer and dashboard of a whole run, on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import click

from tinyverse.cli.context import RunContext, positive
from tinyverse.cli.options import STEPPING_OPTIONS, TrainCommand, TrainOptions
from tinyverse.core import system
from tinyverse.core.errors import TinyverseError
from tinyverse.core.files import atomic_write
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.monitoring import terminal
from tinyverse.trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from tinyverse.trainer.trainer import Trainer


@click.command(cls=TrainCommand, params=[*STEPPING_OPTIONS])
@click.option("--players", type=int, default=1, show_default=True, help="Player processes.")
@click.option("--num-envs", type=int, help="Environments per player [the experiment's].")
def run(
    context: RunContext, options: TrainOptions, players: int = 1, num_envs: int | None = None, **stepping: float | None
) -> Trainer:
    """Server, players, trainer and dashboard here, with one command. Ctrl-C ends them all."""
    from tinyverse.cli.trainer import change_settings, check_options, start_fresh, train_run

    check_options(context, options)
    positive(players=players, num_envs=num_envs, step_timeout=stepping.get("step_timeout"))
    options = dataclasses.replace(options, threads=options.threads or max(1, system.cores() - players))
    with contextlib.ExitStack() as stack:
        should_stop = stack.enter_context(stop_on_signals())
        own = not (context.database or context.names_server)
        if own:
            stack.enter_context(context.folder.alone())
            context = dataclasses.replace(context, redis=stack.enter_context(redis_server.private_server()).url)
        database = stack.enter_context(context.connected())
        if options.resume is False:
            start_fresh(context, database)
            options = dataclasses.replace(options, resume=None)
        if options.force:
            change_settings(context, database)  # before players agree to the old ones
        if own:
            stack.enter_context(_announced(context.folder, context.redis or ""))
        are_gone = stack.enter_context(_players(context, players, {"num_envs": num_envs, **stepping}))
        return train_run(
            context, options, database, lambda: should_stop() or are_gone(), show=terminal.panel, is_alone=own
        )


@contextlib.contextmanager
def _players(context: RunContext, count: int, options: Mapping[str, float | None]) -> Iterator[Callable[[], bool]]:
    """Starts player processes; yields whether none is left. They end when this process does, also when it is killed."""
    words = [sys.executable, "-m", "tinyverse", context.experiment, "play", "--name", context.run, "--quiet"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
    words += ["--database", context.database] if context.database else []
    seeds = [[] if context.seed is None else ["--seed", str(context.seed + 1 + index)] for index in range(count)]
    # the server's password goes through the environment: everyone can read the words of a command
    place = {"TINYVERSE_REDIS_URL": context.server(start=True), "TINYVERSE_PARENT": str(os.getpid())}
    env = {**os.environ, **place, **system.python_path()}
    processes = [subprocess.Popen(words + seed, env=env, start_new_session=True) for seed in seeds]

    def are_gone() -> bool:
        codes = [process.poll() for process in processes]
        if None not in codes and any(codes):  # their own output says why
            failed = counted(len(codes), "player")
            raise TinyverseError(f"{failed} failed, and none is left (exit codes {codes}); see above for why.")
        return None not in codes

    try:
        yield are_gone
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
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
