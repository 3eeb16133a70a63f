"""The command `local`: plays and trains in one process, without a server."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import click
import numpy as np

from tinyverse.cli.context import RunContext, positive
from tinyverse.cli.options import TrainCommand, TrainOptions
from tinyverse.core.errors import SettingsError
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.timing import Ticker
from tinyverse.database.memory import MemoryDatabase

if TYPE_CHECKING:
    from tinyverse.trainer.trainer import Trainer


@click.command(cls=TrainCommand)
@click.option("--num-envs", type=int, help="Environments at once [the experiment's, at most -b].")
def local(context: RunContext, options: TrainOptions, num_envs: int | None = None) -> Trainer:
    """Plays and trains in one process, in lockstep, without a server."""
    from tinyverse.cli.trainer import at_work, check_options
    from tinyverse.player.player import Player
    from tinyverse.replay.samplers import Fresh

    check_options(context, options)
    positive(num_envs=num_envs)
    options = dataclasses.replace(options, threads=options.threads or 1, precision=options.precision or "fp32")
    database = MemoryDatabase()
    with (
        context.folder.alone(),
        stop_on_signals() as interrupted,
        at_work(context, options, database, interrupted) as (trainer, experiment, should_stop, turn),
    ):
        batch = trainer.replay.config.batch_size
        count = num_envs or min(batch, experiment.num_envs)
        if isinstance(trainer.replay.sampler, Fresh) and batch % count:
            stale = f"local with {count} environments and batches of {batch} would learn from stale sessions"
            raise SettingsError(f"{stale}; make -b a multiple of --num-envs.")
        seed = context.fresh_seed()
        if trainer.update:  # a run that goes on plays other environments than those it began with, and always the same
            seed = int(np.random.SeedSequence([seed, trainer.update]).generate_state(1)[0] >> 1)
        player = Player(trainer.agent, experiment.pool(count), experiment.unroll_length, seed=seed)
        saving, left, sequence = Ticker(options.save_every, later=True), options.updates or math.inf, 0
        try:
            while left and not should_stop():
                player.version, player.update = trainer.version, trainer.update
                sessions = player.play().sessions("local", sequence)
                sequence += len(sessions)
                database.append([session.encode() for session in sessions])
                while trainer.feed():
                    pass
                left -= _learn_what_there_is(trainer, left)
                turn()
                if saving.due():
                    trainer.save()
            trainer.check()
        finally:
            player.close()
            trainer.leave()
    return trainer


def _learn_what_there_is(trainer: Trainer, most: float) -> int:
    """Updates until data or `most` run out; of a replay that nothing else bounds (`reuse=None`) only one."""
    made = 0
    while made < most and trainer.step():
        made += 1
        trainer.publisher.version += 1  # in lockstep each update is a version, though nobody fetches it
        if trainer.replay.config.reuse is None:
            break
    return made
