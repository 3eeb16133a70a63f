"""Training: the verb `train`. Makes a trainer of an experiment and the options, and shows how it goes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
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
from tinyverse.cli.context import Asked, positive, without_secrets
from tinyverse.cli.play import check_device, precision_of
from tinyverse.core import distributed, rng, system
from tinyverse.core.errors import DatabaseLost, RankLost, RunConflict, SettingsError, TinyverseError
from tinyverse.core.run_config import check_can_join, check_spec, experiment_and_settings, run_config
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.weights import WeightsFile
from tinyverse.database.base import Database, log_error
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.monitoring import status, writers
from tinyverse.monitoring.progress import Progress, Share
from tinyverse.monitoring.writers import Prometheus, Writer, check_writer, open_writer
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import sampler_of
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.loop import train
from tinyverse.trainer.trainer import Trainer


@dataclasses.dataclass
class Learning:
    """The options of `train`, `run` and `local`; None means: as the experiment says."""

    batch: int | None = None
    updates: int | None = None
    publish_every: int | None = None
    buffer_size: int | None = None
    reuse: float | None = None
    max_lag: int | None = None
    min_sessions: int | None = None
    device: str = "cpu"
    precision: str | None = None
    threads: int | None = None
    compile: bool = False
    profile: bool = False
    minutes: float | None = None
    gpus: int | None = None  # ranks on this machine; with device "cpu", on its cores
    resume: bool | None = None  # True: --resume, False: --fresh, None: whatever there is
    force: bool = False  # go on with other settings than the run was made with
    init_from: str | None = None  # a file of weights to begin with
    save_every: float = 60.0
    player_share: float = 1.0  # of the sessions kept, how much one player may have while others play
    save_replay: bool | None = None  # whether checkpoints hold the replay; None: while it is small
    track: tuple[str, ...] = ()  # writers beside metrics.jsonl and TensorBoard
    metrics_port: str | None = None  # PORT or HOST:PORT, for Prometheus


def do_train(asked: Asked, learning: Learning) -> Trainer:
    """Learns from what players push, and publishes; as one of several ranks where a launcher started it."""
    try:
        with distributed.joined(learning.device) as device:
            again = (
                distributed.restarted() or not distributed.is_rank_zero()
            )  # --fresh and --resume were for rank 0, and for once
            learning = dataclasses.replace(learning, device=device, resume=None if again else learning.resume)
            asked = dataclasses.replace(asked, quiet=asked.quiet or not distributed.is_rank_zero())
            check_learning(learning)
            asked.load()
            with asked.connected() as database, stop_on_signals() as should_stop:
                return train_run(asked, learning, database, should_stop)
    except (RankLost, DatabaseLost):
        raise
    except TinyverseError:
        distributed.give_up()
        raise


def launch(asked: Asked, learning: Learning, ranks: int, words: list[str]) -> None:
    """Starts the command `words` as so many ranks on this machine, and again from the checkpoint where one dies."""
    check_learning(dataclasses.replace(learning, device="cpu"))  # this process needs no GPU
    asked.load()  # what is wrong is said once, and before anything is started
    if learning.device != "cpu" and (there := cuda_devices()) < ranks:
        raise SettingsError(f"--gpus {ranks}: this machine has {there}. Give fewer, or --device cpu for its cores.")
    if url := asked.server(start=True):
        os.environ["TINYVERSE_REDIS_URL"] = url  # one server for all; its password is seen by nobody here
    os.environ.update(system.python_path())
    distributed.launch(words, ranks)


def train_run(
    asked: Asked,
    learning: Learning,
    database: Database,
    should_stop: Callable[[], bool],
    show: Callable[[dict[str, Any]], Any] | None = None,
) -> Trainer:
    system.set_threads(learning.threads or max(1, (system.cores() - 1) // distributed.neighbours()))
    began, should_stop = time.monotonic(), saying_so(asked, or_after(learning.minutes, should_stop))
    log, over = None, False
    with distributed.rank_zero_first():
        trainer, _ = make_trainer(asked, learning, database)
        if distributed.is_rank_zero():
            log = open_log(asked, learning, database, trainer)  # what is wrong with it is said before the run is joined
        join(asked, trainer, should_stop)
    trainer.checkpoints.level()
    asked.say(f"training run {asked.run} from update {trainer.update:,}, into {asked.folder.path}/")

    def line() -> str:
        return trainer_line(trainer)

    def panel() -> RenderableType:
        return Text(line()) if show is None or over else show(status.gather(database, asked.run))

    with (
        profiled(asked, learning.profile and distributed.is_rank_zero()),
        Progress(line, panel, share=aim(trainer, learning, began), quiet=asked.quiet) as progress,
    ):

        def turn() -> None:
            if log:
                log.turn()
            progress.turn()

        try:
            train(
                trainer, updates=learning.updates, save_every=learning.save_every, should_stop=should_stop, on_turn=turn
            )
        except Exception as error:
            log_error(database, trainer.worker, error)
            raise
        finally:
            over = True  # what is left to be seen is what came out, not that nobody is at work any more
            if log:
                log.close()
    return trainer


def join(asked: Asked, trainer: Trainer, should_stop: Callable[[], bool] = lambda: False) -> None:
    """`trainer.join`, which shows what takes long in it."""

    def look() -> Share:
        done, total = trainer.folder.stored.loaded if trainer.folder else (0, 0)
        waits = f"waits for {trainer.waiting.reason}" if trainer.waiting.reason else f"joining run {asked.run}"
        return Share("stored sessions taken up", done, total) if total else Share(waits)

    with asked.bar("", look=look):
        trainer.join(should_stop=should_stop)


def aim(trainer: Trainer, learning: Learning, began: float) -> Callable[[], Share | None]:
    """What the command has come to: of the sessions that it needs to begin with, then of its updates or minutes.

    Args:
        began: when its minutes did, by `time.monotonic`.
    """
    first = trainer.update

    def look() -> Share | None:
        if (filling := trainer.replay.filling) is not None:
            return Share("sessions before learning begins", *filling)
        if learning.updates is not None:
            return Share("updates", trainer.update - first, learning.updates)
        if learning.minutes is not None:
            return Share("minutes", round((time.monotonic() - began) / 60, 1), learning.minutes)
        return None

    return look


def open_log(asked: Asked, learning: Learning, database: Database, trainer: Trainer) -> writers.TrainLog:
    """The trainer's log, with all places that were asked for."""
    places: list[Writer] = [open_writer(name, asked.folder) for name in learning.track]
    if learning.metrics_port:
        places.append(Prometheus(learning.metrics_port, {"run": asked.run}))
    return writers.TrainLog(trainer.row, asked.folder, database, writers=places, arrays=trainer.replay.arrays)


def make_trainer(asked: Asked, learning: Learning, database: Database) -> tuple[Trainer, Experiment]:
    """A trainer of this run that has not joined it yet."""
    folder = asked.folder
    if learning.resume is False:
        start_fresh(asked, database)
    meta, kept = database.meta(), folder.settings() if distributed.is_rank_zero() else {}
    if learning.resume and not kept:
        raise SettingsError(f"--resume: there is nothing in {folder.path}/ to go on from. Leave it out to start.")
    for agreed in (experiment_and_settings(meta), kept):
        check_can_join(asked.run, agreed, asked.title, asked.given, force=learning.force)
    if learning.force and change_settings(asked, database):
        meta = {}
    agreed = (experiment_and_settings(meta) or kept).get("settings", {})
    settings = asked.resolved(agreed)
    _say_what_is_kept(asked, agreed)
    seed = asked.fresh_seed() + distributed.rank()  # each draws others; the weights are rank 0's
    rng.seed(seed)
    experiment = loader.build(asked.module, settings)
    agent = experiment.agent()
    if hasattr(agent, "to"):
        agent.to(device=learning.device)
    if learning.init_from is not None:
        _begin_from(asked, learning.init_from, agent, goes_on=bool(meta or folder.newest()))
    learner = experiment.learner(agent)
    if learning.compile:
        _compile(agent, learning.device)
    spec = experiment.spec(agent)
    if meta:
        check_spec(asked.run, meta, spec)
    sampler = sampler_of(experiment.sampler)
    flow = ReplayConfig(
        batch=learning.batch or experiment.batch,
        buffer_size=learning.buffer_size or experiment.buffer_size,
        reuse=experiment.reuse if learning.reuse is None else learning.reuse,
        max_lag=experiment.max_lag if learning.max_lag is None else learning.max_lag,
        min_sessions=experiment.min_sessions if learning.min_sessions is None else learning.min_sessions,
    ).shared(distributed.size())
    replay = Replay(spec, flow, sampler, device=learning.device, seed=seed)
    config = TrainerConfig(
        publish_every=learning.publish_every or experiment.publish_every,
        precision=precision_of(learning.precision or experiment.precision, learning.device),
        frame_skip=experiment.frame_skip,
        save_replay=learning.save_replay if distributed.size() == 1 else False,  # other ranks would have other shares
        player_share=learning.player_share,
    )
    trainer = Trainer(
        agent, learner, replay, database, run_config(asked.title, settings, spec),
        folder=folder if distributed.is_rank_zero() else None, config=config,
    )  # fmt: skip
    if distributed.is_rank_zero():
        words = without_secrets(sys.argv[1:]) if Path(sys.argv[0]).stem in ("tinyverse", "__main__") else []
        folder.write_settings({"experiment": asked.title, "settings": settings, "seed": seed, "argv": words})
        folder.log_start({
            "when": time.strftime("%Y-%m-%d %H:%M:%S %z"), "argv": words, "seed": seed, "source": asked.source,
            "device": learning.device, "machine": system.facts(), "versions": system.versions(Path(asked.source).parent),
        })  # fmt: skip
    return trainer, experiment


def _compile(agent: Agent, device: str) -> None:
    """Lets torch fuse the network's operations: minutes at first, and on a CPU a C++ compiler is needed."""
    network = getattr(agent, "network", None)
    if network is None:
        raise SettingsError(f"--compile wants an agent with a PyTorch network; {type(agent).__name__} has none.")
    if device == "cpu" and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise SettingsError(
            "--compile on a CPU wants a C++ compiler, and there is no g++ here. Install one or leave it out."
        )
    network.compile(mode="reduce-overhead" if device.startswith("cuda") else "default")


def _begin_from(asked: Asked, file: str, agent: Agent, goes_on: bool) -> None:
    """Gives the agent another run's weights, before a learner copies them; a run that goes on has its own."""
    if goes_on:
        asked.say(f"run {asked.run} goes on with its own weights; --init-from was for its beginning")
        return
    agent.set_weights(WeightsFile.read(Path(file)).weights)
    asked.say(f"run {asked.run} begins with the weights in {file}")


def _say_what_is_kept(asked: Asked, agreed: Mapping[str, Any]) -> None:
    """A run goes on with its own settings, also where the experiment's file has been changed since, or -o is left out."""
    written = json.loads(json.dumps(loader.defaults(asked.module), default=str))
    others = [name for name in agreed if agreed[name] != written.get(name) and name not in asked.given]
    if others:
        kept, now = (", ".join(f"{name}={settings.get(name)}" for name in others) for settings in (agreed, written))
        asked.say(f"run {asked.run} goes on with {kept}, as it was made; its file says {now} (--fresh begins anew)")


def start_fresh(asked: Asked, database: Database) -> None:
    """Puts an earlier run of this name aside."""
    _refuse_beside_a_trainer(asked, database, "--fresh")
    database.clear()
    if (aside := asked.folder.start_fresh()) is not None:
        asked.say(f"--fresh: the older run is kept in {aside}/")


def change_settings(asked: Asked, database: Database) -> bool:
    """Makes room in the database for an agreement with the settings asked for, if they are others; whether it did.

    Sessions and weights there are of the old one and go too: the run goes on from its checkpoint.
    """
    meta, given = database.meta(), json.loads(json.dumps(asked.given, default=str))
    if not meta or given.items() <= experiment_and_settings(meta)["settings"].items():
        return False
    _refuse_beside_a_trainer(asked, database, "--force")
    if asked.folder.newest() is None:
        raise RunConflict(f"--force: there is no checkpoint of run {asked.run} in {asked.folder.path}/ to go on from.")
    database.clear()
    return True


def _refuse_beside_a_trainer(asked: Asked, database: Database, option: str) -> None:
    if trainers := [worker for worker in database.workers() if worker.role == "train"]:
        raise RunConflict(
            f"{option}: run {asked.run} is being trained on {trainers[0].host} (pid {trainers[0].pid}). Stop that first."
        )


def trainer_line(trainer: Trainer) -> str:
    mean = f"{np.mean(trainer.feeder.returns):.2f}" if trainer.feeder.returns else "–"
    waits = f", waits for {trainer.waiting.reason}" if trainer.waiting.reason else ""
    return (
        f"train: update {trainer.update:,}, {counted(trainer.feeder.steps, 'step')} at {trainer.feeder.step_rate.per_second():,.0f}/s, "
        f"return {mean} over the last {counted(len(trainer.feeder.returns), 'episode')}, version {trainer.version}, lag {trainer.replay.lag:.1f}{waits}"
    )


@contextlib.contextmanager
def profiled(asked: Asked, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        path = asked.folder.path / "profile.txt"
        with path.open("w", encoding="utf-8") as file:
            pstats.Stats(profile, stream=file).sort_stats("cumulative").print_stats(60)
        asked.say(f"wrote where the training thread's time went to {path}")


def or_after(minutes: float | None, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, or so many minutes from now."""
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    return lambda: should_stop() or time.monotonic() > ends


def saying_so(asked: Asked, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, which says once that it is heard: to save and to leave takes seconds."""
    heard = False

    def asks() -> bool:
        nonlocal heard
        if not heard and should_stop():
            heard = True
            asked.say("saves and ends; Ctrl-C again ends at once")
        return heard

    return asks


def check_learning(learning: Learning) -> None:
    positive(
        batch=learning.batch, updates=learning.updates, publish_every=learning.publish_every,
        buffer_size=learning.buffer_size, threads=learning.threads, gpus=learning.gpus,
    )  # fmt: skip
    for name in learning.track:
        check_writer(name)
    check_device(learning.device)
    if learning.force and learning.resume is False:
        raise SettingsError("--fresh begins anew and --force goes on with other settings: leave one of them out.")
    if learning.init_from is not None and not Path(learning.init_from).is_file():
        raise SettingsError(f"--init-from {learning.init_from}: there is no such file.")


def cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()
