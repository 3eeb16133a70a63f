"""The command `train`: learns from what players push, and publishes weights."""

import dataclasses
import os
import sys

import click

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import TrainCommand, TrainOptions
from tinyverse.core import system
from tinyverse.core.errors import DatabaseLost, RankLost, SettingsError, TinyverseError
from tinyverse.core.signals import stop_on_signals


@click.command(cls=TrainCommand)
@click.option("--gpus", "--ranks", "gpus", type=int, metavar="N", help="Learn as N processes on this machine, each on a GPU of its own, or with --device cpu on its cores; they share the batch.")  # fmt: skip
def train(context: RunContext, options: TrainOptions) -> None:
    """Learns from pushed sessions and publishes weights.

    Example: tinyverse atari.py train -b 16 -o learning_rate=3e-4
    """
    from tinyverse.cli.trainer import check_options, train_run
    from tinyverse.core import distributed

    if options.gpus is not None and not distributed.launched():
        _launch(context, options, options.gpus)
        return
    try:
        with distributed.joined(options.device) as device:
            is_first = distributed.is_rank_zero()
            # --fresh and --resume are for rank 0, and for once
            resume = options.resume if is_first and not distributed.restarted() else None
            options = dataclasses.replace(options, device=device, resume=resume)
            context = dataclasses.replace(context, quiet=context.quiet or not is_first)
            check_options(context, options)
            with context.connected() as database, stop_on_signals() as should_stop:
                train_run(context, options, database, should_stop)
    except (RankLost, DatabaseLost):
        raise
    except TinyverseError:
        distributed.give_up()
        raise


def _launch(context: RunContext, options: TrainOptions, ranks: int) -> None:
    """Starts this command as so many ranks on this machine, and again from the checkpoint where one dies."""
    import torch

    from tinyverse.cli.trainer import check_options
    from tinyverse.core import distributed

    check_options(context, dataclasses.replace(options, device="cpu"))  # this process needs no GPU
    if options.device != "cpu" and (there := torch.cuda.device_count()) < ranks:
        raise SettingsError(f"--gpus {ranks}: this machine has {there}. Give fewer, or --device cpu for its cores.")
    if url := context.server(start=True):
        os.environ["TINYVERSE_REDIS_URL"] = url  # one server for all; its password is seen by nobody here
    os.environ.update(system.python_path())
    distributed.launch(sys.argv[1:], ranks)
