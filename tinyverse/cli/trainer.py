"""A run's trainer, made of a RunContext and TrainOptions, and how it is shown: for `train`, `run` and `local`."""

import contextlib
import cProfile
import json
import os
import pstats
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from tinyverse.agents.agent import Agent
from tinyverse.cli.context import RunContext, positive, without_secrets
from tinyverse.cli.devices import check_device, precision_of
from tinyverse.cli.options import TrainOptions
from tinyverse.core import distributed, rng, system
from tinyverse.core.errors import LeaseLost, RunConflict, SettingsError
from tinyverse.core.run_config import check_can_join, check_spec, experiment_and_settings, run_config
from tinyverse.core.text import counted
from tinyverse.core.weights import WeightsFile
from tinyverse.database.base import HEARTBEAT_SECONDS, Database, log_error
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.monitoring import status
from tinyverse.monitoring.progress import Progress, Share
from tinyverse.monitoring.writers import Prometheus, TrainLog, Writer, check_writer, open_writer
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import sampler_of
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.loop import train
from tinyverse.trainer.publisher import STOPPED_WAITING
from tinyverse.trainer.trainer import Trainer

Stop = Callable[[], bool]
Show = Callable[[dict[str, Any]], RenderableType]  # makes what is shown of a run's status


def check_options(context: RunContext, options: TrainOptions) -> None:
    """Says what is wrong with the options, the experiment or its settings before anything is started for it."""
    positive(
        batch_size=options.batch_size, updates=options.updates, publish_every=options.publish_every,
        buffer_size=options.buffer_size, threads=options.threads, gpus=options.gpus,
    )  # fmt: skip
    for name in options.track:
        check_writer(name)
    check_device(options.device)
    if options.force and options.resume is False:
        raise SettingsError("--fresh begins anew and --force goes on with other settings: leave one of them out.")
    if options.init_from is not None and not Path(options.init_from).is_file():
        raise SettingsError(f"--init-from {options.init_from}: there is no such file.")
    context.resolved({})


def train_run(
    context: RunContext, options: TrainOptions, database: Database, should_stop: Stop, show: Show | None = None, *,
    is_alone: bool = False,
) -> Trainer:  # fmt: skip
    """Trains until the end; `is_alone`: the caller keeps other trainers out of the run's folder."""
    alone = contextlib.nullcontext() if is_alone else _alone(context, database, should_stop)
    with alone, at_work(context, options, database, should_stop, show) as (trainer, _, should_end, turn):
        context.say(f"training run {context.run} from update {trainer.update:,}, into {context.folder.path}/")
        train(trainer, updates=options.updates, save_every=options.save_every, should_stop=should_end, on_turn=turn)
    return trainer


@contextlib.contextmanager
def _alone(context: RunContext, database: Database, should_stop: Stop) -> Iterator[None]:
    """Keeps other trainers out of the run's folder, and waits for one of the same run, as for its lease.

    Raises:
        RunConflict: another process trains into the folder, and not for this run on this server.
        SettingsError: somebody stopped it while it waited.
    """
    waits = False
    with contextlib.ExitStack() as stack:
        while distributed.is_rank_zero():
            try:
                stack.enter_context(context.folder.alone())
                break
            except RunConflict:
                if not any(worker.role == "train" for worker in database.workers()):
                    raise
            if should_stop():
                raise SettingsError(STOPPED_WAITING)
            if not waits:
                context.say(f"waits for another trainer of run {context.run} to end")
            waits = True
            time.sleep(HEARTBEAT_SECONDS)
        yield


@contextlib.contextmanager
def at_work(
    context: RunContext, options: TrainOptions, database: Database, should_stop: Stop, show: Show | None = None
) -> Iterator[tuple[Trainer, Experiment, Stop, Callable[[], None]]]:
    """A trainer that has joined its run, the experiment, whether to stop, and what is to be called after each turn.

    While it trains, its log is written, and on the terminal its line or what `show` makes of the run's status.
    """
    system.set_threads(options.threads or max(1, (system.cores() - 1) // distributed.neighbours()))
    began, minutes = time.monotonic(), float("inf") if options.minutes is None else options.minutes
    should_end = saying_so(context, should_stop, began + 60 * minutes)
    is_first, log, over = distributed.is_rank_zero(), None, False
    with distributed.rank_zero_first():
        trainer, experiment = make_trainer(context, options, database)
        if is_first:  # before the run is joined, so that what is wrong with the log is said first
            places: list[Writer] = [open_writer(name, context.folder) for name in options.track]
            if options.metrics_port:
                places.append(Prometheus(options.metrics_port, {"run": context.run}))
            log = TrainLog(trainer.row, context.folder, database, writers=places, arrays=trainer.replay.arrays)
        _join(context, trainer, should_end)
    trainer.checkpoints.level()

    def panel() -> RenderableType:
        return Text(_line(trainer)) if show is None or over else show(status.gather(database, context.run))

    progress = Progress(lambda: _line(trainer), panel, share=_share(trainer, options, began), quiet=context.quiet)
    profiled = _profiled(context) if options.profile and is_first else contextlib.nullcontext()
    with profiled, progress:
        warned = lost = False

        def turn() -> None:
            nonlocal warned
            if log:
                log.turn()
            if trainer.learner.current_learning_rate == 0 and not warned:
                warned = True
                context.say("the learning rate has fallen to 0, so nothing more is learned: total_updates are made")
            progress.turn()

        try:
            yield trainer, experiment, should_end, turn
        except Exception as error:
            lost = isinstance(error, LeaseLost)
            log_error(database, trainer.worker, error)
            raise
        finally:
            over = True  # what is left to be seen is what came out, not that nobody is at work any more
            if log:
                log.close(last=not lost)


def _join(context: RunContext, trainer: Trainer, should_stop: Stop) -> None:
    """`trainer.join`, which shows what takes long in it."""

    def refresh() -> Share:
        done, total = trainer.folder.stored.loaded if trainer.folder else (0, 0)
        waits = f"waits for {trainer.waiting.reason}" if trainer.waiting.reason else f"joining run {context.run}"
        return Share("stored sessions taken up", done, total) if total else Share(waits)

    with context.bar("", refresh=refresh):
        trainer.join(should_stop=should_stop)


def _share(trainer: Trainer, options: TrainOptions, began: float) -> Callable[[], Share | None]:
    """What the command has come to: of the sessions that it needs to begin with, then of its updates or minutes."""
    first = trainer.update

    def share() -> Share | None:
        if (filling := trainer.replay.filling) is not None:
            return Share("sessions before learning begins", *filling)
        if options.updates is not None:
            return Share("updates", trainer.update - first, options.updates)
        if options.minutes is not None:
            return Share("minutes", round((time.monotonic() - began) / 60, 1), options.minutes)
        return None

    return share


def make_trainer(context: RunContext, options: TrainOptions, database: Database) -> tuple[Trainer, Experiment]:
    """A trainer of this run that has not joined it yet."""
    folder, is_first = context.folder, distributed.is_rank_zero()
    if options.resume is False:
        start_fresh(context, database)
    meta, kept = database.meta(), folder.settings() if is_first else {}
    if options.resume and not kept:
        raise SettingsError(f"--resume: there is nothing in {folder.path}/ to go on from. Leave it out to start.")
    for stored in (experiment_and_settings(meta), kept):
        check_can_join(context.run, stored, context.title, context.given, force=options.force)
    if options.force and change_settings(context, database):
        meta = {}
    stored = (experiment_and_settings(meta) or kept).get("settings", {})
    settings = context.resolved(stored)
    _say_what_is_kept(context, stored)
    seed = context.fresh_seed() + distributed.rank()  # each draws others; the weights are rank 0's
    rng.seed(seed)
    experiment = loader.build(context.module, settings)
    agent = experiment.agent()
    if hasattr(agent, "to"):
        agent.to(device=options.device)
    if options.init_from is not None:
        _begin_from(context, options.init_from, agent, goes_on=bool(meta or folder.newest()))
    learner = experiment.learner(agent)
    if options.compile:
        _compile(agent, options.device)
    spec = experiment.spec(agent)
    if meta:
        check_spec(context.run, meta, spec)

    def chosen(name: str) -> Any:
        option = getattr(options, name)
        return getattr(experiment, name) if option is None else option

    names = ("batch_size", "buffer_size", "reuse", "max_lag", "min_sessions")
    replay_config = ReplayConfig(**{name: chosen(name) for name in names}).shared(distributed.size())
    replay = Replay(spec, replay_config, sampler_of(experiment.sampler), device=options.device, seed=seed)
    config = TrainerConfig(
        publish_every=chosen("publish_every"),
        precision=precision_of(chosen("precision"), options.device),
        frame_skip=experiment.frame_skip,
        save_replay=options.save_replay if distributed.size() == 1 else False,  # other ranks would have other shares
        player_share=options.player_share,
    )
    trainer = Trainer(
        agent, learner, replay, database, run_config(context.title, settings, spec),
        folder=folder if is_first else None, config=config,
    )  # fmt: skip
    if is_first:
        words = without_secrets(sys.argv[1:]) if Path(sys.argv[0]).stem in ("tinyverse", "__main__") else []
        folder.write_settings({"experiment": context.title, "settings": settings, "seed": seed, "argv": words})
        folder.log({
            "when": time.strftime("%Y-%m-%d %H:%M:%S %z"), "argv": words, "seed": seed, "source": context.source,
            "device": options.device, "machine": system.facts(), "versions": system.versions(Path(context.source).parent),
        }, "starts")  # fmt: skip
    return trainer, experiment


def _compile(agent: Agent, device: str) -> None:
    """Lets torch fuse the network's operations: minutes at first, and on a CPU a C++ compiler is needed."""
    network = getattr(agent, "network", None)
    if network is None:
        raise SettingsError(f"--compile wants an agent with a PyTorch network; {type(agent).__name__} has none.")
    if device == "cpu" and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise SettingsError(
            "--compile on a CPU wants a C++ compiler; there is no g++ here. Install it or leave it out."
        )
    network.compile(mode="reduce-overhead" if device.startswith("cuda") else "default")


def _begin_from(context: RunContext, file: str, agent: Agent, goes_on: bool) -> None:
    """Gives the agent another run's weights, before a learner copies them; a run that goes on has its own."""
    if goes_on:
        context.say(f"run {context.run} goes on with its own weights; --init-from was for its beginning")
        return
    agent.set_weights(WeightsFile.read(Path(file)).weights)
    context.say(f"run {context.run} begins with the weights in {file}")


def _say_what_is_kept(context: RunContext, stored: Mapping[str, Any]) -> None:
    """A run goes on with its own settings, also where the experiment's file has been changed since, or -o is left out."""
    written = json.loads(json.dumps(loader.defaults(context.module), default=str))
    others = [name for name in stored if stored[name] != written.get(name) and name not in context.given]
    if others:
        kept, now = (", ".join(f"{name}={settings.get(name)}" for name in others) for settings in (stored, written))
        context.say(f"run {context.run} goes on with {kept}, as it was made; its file says {now} (--fresh begins anew)")


def start_fresh(context: RunContext, database: Database) -> None:
    """Puts an earlier run of this name aside."""
    _refuse_beside_a_trainer(context, database, "--fresh")
    database.clear()
    if (aside := context.folder.start_fresh()) is not None:
        context.say(f"--fresh: the older run is kept in {aside}/")


def change_settings(context: RunContext, database: Database) -> bool:
    """Makes room in the database for a run config with the settings asked for, if they are others; whether it did.

    Sessions and weights there are of the old one and go too: the run goes on from its checkpoint.
    """
    meta, given = database.meta(), json.loads(json.dumps(context.given, default=str))
    if not meta or given.items() <= experiment_and_settings(meta)["settings"].items():
        return False
    _refuse_beside_a_trainer(context, database, "--force")
    if context.folder.newest() is None:
        where = f"{context.folder.path}/"
        raise RunConflict(f"--force: there is no checkpoint of run {context.run} in {where} to go on from.")
    database.clear()
    return True


def _refuse_beside_a_trainer(context: RunContext, database: Database, option: str) -> None:
    for worker in database.workers():
        if worker.role == "train":
            where = f"{worker.host} (pid {worker.pid})"
            raise RunConflict(f"{option}: run {context.run} is being trained on {where}. Stop that first.")


def _line(trainer: Trainer) -> str:
    feeder = trainer.feeder
    mean = f"{np.mean(feeder.returns):.2f}" if feeder.returns else "–"
    waits = f", waits for {trainer.waiting.reason}" if trainer.waiting.reason else ""
    return (
        f"train: update {trainer.update:,}, {counted(feeder.steps, 'step')} at {feeder.step_rate.per_second():,.0f}/s, return {mean} over "
        f"the last {counted(len(feeder.returns), 'episode')}, version {trainer.version}, lag {trainer.replay.lag:.1f}{waits}"
    )


@contextlib.contextmanager
def _profiled(context: RunContext) -> Iterator[None]:
    """Writes to the run's folder where this thread's time went."""
    profile, path = cProfile.Profile(), context.folder.path / "profile.txt"
    try:
        with profile:
            yield
    finally:
        with path.open("w", encoding="utf-8") as file:
            pstats.Stats(profile, stream=file).sort_stats("cumulative").print_stats(60)
        context.say(f"wrote where the training thread's time went to {path}")


def saying_so(context: RunContext, should_stop: Stop, ends: float = float("inf")) -> Stop:
    """`should_stop`, or the time `ends`; says once that it has come, for to save and to leave takes seconds."""
    heard = False

    def asks() -> bool:
        nonlocal heard
        if not heard and (should_stop() or time.monotonic() > ends):
            heard = True
            context.say("saves and ends; Ctrl-C again ends at once")
        return heard

    return asks
