"""Verbs: what `tinyverse EXPERIMENT VERB` does, each in one function, called by the command line and by tests."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live

from tinyverse import loader, machine, monitor, redis_server
from tinyverse.agent import Agent
from tinyverse.asked import RECORDS, Asked, positive, stop_on_signals
from tinyverse.database import Database
from tinyverse.errors import DatabaseError, RunConflict, ServerError, SettingsError, TinyverseError
from tinyverse.evaluator import Evaluation, evaluate, evaluate_in_processes
from tinyverse.experiment import Experiment
from tinyverse.player import HEARTBEAT_SECONDS, Courier, Player, new_worker, play
from tinyverse.redis_database import list_runs
from tinyverse.replay import Flow, Replay
from tinyverse.run import agreed_of, agreement, check_agreed, check_spec, load_weights_file
from tinyverse.samplers import sampler_of
from tinyverse.timing import Ticker
from tinyverse.trainer import Trainer, train
from tinyverse.weights import decode_weights, encode_weights

logger = logging.getLogger(__name__)



# -- play -----------------------------------------------------------------------------------------------------------


def do_play(
    asked: Asked, *, games: int | None = None, batches: int | None = None, sync_every: int = 1, device: str = "cpu", precision: str | None = None
) -> int:
    """Steps games and pushes sessions; returns the batches pushed."""
    positive(games=games, batches=batches, sync_every=sync_every)
    check_device(device)
    asked.load()
    with asked.connected() as database, stop_on_signals() as should_stop:
        meta = _await_run(asked, database, should_stop)
        if not meta:
            return 0
        machine.set_threads(1)
        settings = asked.resolved(agreed_of(meta)["settings"])
        experiment = loader.build(asked.module, settings)
        agent, spare = (_acting(experiment.agent(), device, precision or experiment.precision) for _ in range(2))
        check_spec(asked.run, meta, experiment.spec(agent))
        pool = experiment.pool(games or experiment.games)
        worker = new_worker("play", games=pool.num_games)
        courier = Courier(database, worker, spare)
        player = Player(agent, pool, experiment.unroll_length, seed=asked.fresh_seed())
        courier.start()
        asked.say(f"playing {pool.num_games} game{'s' * (pool.num_games > 1)} of run {asked.run}")
        try:
            with monitor.Progress(lambda: _player_line(player, courier), quiet=asked.quiet) as progress:
                played = play(
                    player, courier, batches=batches, sync_every=sync_every, realtime=pool.realtime or experiment.realtime,
                    should_stop=should_stop, on_batch=progress.turn,
                )  # fmt: skip
        except BaseException as error:
            worker.error = f"{type(error).__name__}: {error}"  # stays in `info` until the heartbeat is stale
            courier.close()
            raise
        finally:
            pool.close()
        courier.close()
        if courier.failure is not None:
            raise courier.failure
        with contextlib.suppress(DatabaseError):
            database.leave(worker.id)
        return played


def _await_run(asked: Asked, database: Database, should_stop: Callable[[], bool]) -> dict[str, str]:
    """The run's agreement, once a trainer has created it; {} if asked to stop before."""
    worker, told, stop_count = new_worker("play", waits_for="a trainer to create the run"), False, database.state().stop
    began = time.monotonic()
    while not (meta := database.meta()):
        if not told:
            asked.say(f"waiting for a trainer of run {asked.run} (tinyverse {asked.experiment} train)")
            told = True
        worker.waits_seconds = time.monotonic() - began
        if database.beat(worker).stop > stop_count or should_stop():
            break
        time.sleep(HEARTBEAT_SECONDS / 4)
    database.leave(worker.id)
    check_agreed(asked.run, agreed_of(meta), asked.title, asked.given)
    return meta


def _acting(agent: Agent, device: str, precision: str) -> Agent:
    """An agent for playing: on its device, in bfloat16 where that is wanted and fast."""
    to = getattr(agent, "to", None)
    if to is None:
        return agent
    import torch

    return to(device=device, dtype=torch.bfloat16 if precision_of(precision, device) == "bf16" else None)


def precision_of(wanted: str, device: str) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device multiplies it itself."""
    if wanted not in ("auto", "fp32", "bf16"):
        raise SettingsError(f"precision is {wanted!r}; there are auto, fp32 and bf16.")
    if wanted != "auto":
        return wanted
    return "bf16" if device.startswith("cuda") or machine.has_bfloat16() else "fp32"


def _player_line(player: Player, courier: Courier) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in player.stages.take().items())
    waits = f", waits for {courier.waiting.reason}" if courier.waiting.reason else ""
    return (
        f"play: {player.rate.per_second():,.0f} steps/s, {player.rate.total:,} steps, version {player.version}, "
        f"{courier.worker.sessions:,} sessions pushed{waits} ({shares})"
    )


# -- train ----------------------------------------------------------------------------------------------------------


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
    profile: bool = False
    minutes: float | None = None
    resume: bool | None = None  # True: --resume, False: --fresh, None: whatever there is
    save_every: float = 60.0


def do_train(asked: Asked, learning: Learning) -> Trainer:
    """Learns from what players push, and publishes."""
    check_learning(learning)
    asked.load()
    with asked.connected() as database, stop_on_signals() as should_stop:
        return train_run(asked, learning, database, should_stop)


def train_run(
    asked: Asked, learning: Learning, database: Database, should_stop: Callable[[], bool], show: Callable[[dict[str, Any]], Any] | None = None
) -> Trainer:
    machine.set_threads(learning.threads or max(1, machine.cores() - 1))
    should_stop = or_after(learning.minutes, should_stop)
    trainer, _ = make_trainer(asked, learning, database)
    trainer.join(should_stop=should_stop)
    log = monitor.TrainLog(trainer.row, asked.folder, database)
    asked.say(f"training run {asked.run} from update {trainer.update:,}, into {asked.folder.path}/")
    render = (lambda: show(monitor.gather(database, asked.run))) if show else None
    with profiled(asked, learning.profile), monitor.Progress(lambda: trainer_line(trainer), render, quiet=asked.quiet) as progress:

        def turn() -> None:
            log.turn()
            progress.turn()

        try:
            train(trainer, updates=learning.updates, save_every=learning.save_every, should_stop=should_stop, on_turn=turn)
        finally:
            log.close()
    return trainer


def make_trainer(asked: Asked, learning: Learning, database: Database) -> tuple[Trainer, Experiment]:
    """A trainer of this run that has not joined it yet."""
    folder = asked.folder
    if learning.resume is False:
        start_fresh(asked, database)
    meta, kept = database.meta(), folder.settings()
    if learning.resume and not kept:
        raise SettingsError(f"--resume: there is nothing in {folder.path}/ to go on from. Leave it out to start.")
    for agreed in (agreed_of(meta), kept):
        check_agreed(asked.run, agreed, asked.title, asked.given)
    settings = asked.resolved((agreed_of(meta) or kept).get("settings", {}))
    seed = asked.fresh_seed()
    _seed_everything(seed)
    experiment = loader.build(asked.module, settings)
    agent = experiment.agent()
    if hasattr(agent, "to"):
        agent.to(device=learning.device)
    learner = experiment.learner(agent)
    spec = experiment.spec(agent)
    if meta:
        check_spec(asked.run, meta, spec)
    sampler = sampler_of(experiment.sampler)
    flow = Flow(
        batch=learning.batch or experiment.batch,
        buffer_size=learning.buffer_size or experiment.buffer_size,
        reuse=experiment.reuse if learning.reuse is None else learning.reuse,
        max_lag=experiment.max_lag if learning.max_lag is None else learning.max_lag,
        min_sessions=experiment.min_sessions if learning.min_sessions is None else learning.min_sessions,
    )
    replay = Replay(spec, flow, sampler, device=learning.device, seed=seed)
    trainer = Trainer(
        agent, learner, replay, database, agreement(asked.title, settings, spec), folder=folder,
        publish_every=learning.publish_every or experiment.publish_every,
        precision=precision_of(learning.precision or experiment.precision, learning.device), frame_skip=experiment.frame_skip,
    )  # fmt: skip
    folder.write_settings({"experiment": asked.title, "settings": settings, "seed": seed, "argv": sys.argv[1:]})
    return trainer, experiment


def start_fresh(asked: Asked, database: Database) -> None:
    trainers = [worker for worker in database.workers() if worker.role == "train"]
    if trainers:
        raise RunConflict(f"--fresh: run {asked.run} is being trained on {trainers[0].host} (pid {trainers[0].pid}). Stop that first.")
    database.clear()
    if (aside := asked.folder.start_fresh()) is not None:
        asked.say(f"--fresh: the older run is kept in {aside}/")


def trainer_line(trainer: Trainer) -> str:
    mean = f"{np.mean(trainer.returns):.2f}" if trainer.returns else "–"
    waits = f", waits for {trainer.waiting.reason}" if trainer.waiting.reason else ""
    return (
        f"train: update {trainer.update:,}, {trainer.step_count:,} steps at {trainer.step_rate.per_second():,.0f}/s, "
        f"return {mean} over the last {len(trainer.returns)} episodes, version {trainer.version}, lag {trainer.lag:.1f}{waits}"
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
        with path.open("w") as file:
            pstats.Stats(profile, stream=file).sort_stats("cumulative").print_stats(60)
        asked.say(f"wrote where the training thread's time went to {path}")


# -- eval -----------------------------------------------------------------------------------------------------------


def do_eval(
    asked: Asked,
    *,
    games: int = 1,
    at_once: int | None = None,
    jobs: int = 1,
    greedy: bool = False,
    render: bool = False,
    weights: str | None = None,
    video: bool = True,
    every: bool = False,
    device: str = "cpu",
    on_result: Callable[[Evaluation], None] = lambda result: None,
) -> Evaluation | None:
    """Plays whole games with published weights, or with those of the run's folder; with `every`, each new version."""
    positive(games=games, at_once=at_once, jobs=jobs)
    check_device(device)
    machine.set_threads(1)
    result, done = None, -1
    with stop_on_signals() as should_stop:
        while not should_stop():
            version, arrays, settings = _weights_for(asked, weights, newer_than=done)
            if version > done:
                done = version
                result = _evaluate_version(asked, version, arrays, settings, games, at_once, jobs, greedy, render, video, device)
                on_result(result)
            if not every:
                break
            time.sleep(HEARTBEAT_SECONDS)
    return result


def _evaluate_version(
    asked: Asked, version: int, arrays: Any, settings: Any, games: int, at_once: int | None, jobs: int,
    greedy: bool, render: bool, video: bool, device: str,
) -> Evaluation:  # fmt: skip
    film = RECORDS / f"{asked.run}-v{version}.webm" if video and not render else None
    options: dict[str, Any] = {"at_once": at_once or 1, "greedy": greedy, "seed": asked.fresh_seed(), "video": film, "render": render}
    make = functools.partial(_rebuild, asked.experiment, settings)
    if jobs > 1:
        result = evaluate_in_processes(make, arrays, jobs=jobs, games=games, **options)
    else:
        experiment = make()
        agent = _acting(experiment.agent(), device, "fp32")
        agent.set_weights(arrays)
        progress = Ticker(5.0, later=True)

        def on_game(done: int, total: float) -> None:
            if progress.due():
                asked.say(f"{done} of {games} games done, the last returned {total:.2f}")

        result = evaluate(experiment, agent, games=games, on_game=on_game, **options)
    return dataclasses.replace(result, version=version)


def _rebuild(experiment: str, settings: Mapping[str, Any]) -> Experiment:
    return loader.build(loader.load_module(experiment), settings)


def _weights_for(asked: Asked, weights: str | None, newer_than: int) -> tuple[int, Any, dict[str, Any]]:
    """(version, arrays, settings) as asked for: a file, a version in the database, the newest, or the folder's."""
    folder = asked.folder.settings()
    check_agreed(asked.run, folder, asked.title, asked.given)
    if weights is not None and not weights.isdigit():
        if not Path(weights).is_file():
            raise SettingsError(f"--weights {weights} is neither a file here nor the number of a version. Checkpoints lie in {asked.folder.checkpoints}/.")
        version, arrays = load_weights_file(Path(weights))
        return version, arrays, asked.resolved(folder.get("settings", {}))
    needless = () if weights or asked.names_server else (ServerError,)
    with contextlib.suppress(*needless), asked.connected(start=False) as database:
        meta = database.meta()
        check_agreed(asked.run, agreed_of(meta), asked.title, asked.given)
        found = database.get_weights(version=int(weights) if weights else None)
        if found is not None and meta:
            return found[0], decode_weights(found[1])[0], asked.resolved(agreed_of(meta)["settings"])
        if weights is not None and meta:
            raise SettingsError(f"run {asked.run} has no version {weights}; the newest is {database.state().version}, and 3 are kept.")
    if (checkpoint := asked.folder.newest()) is not None:
        version, arrays = load_weights_file(checkpoint)
        return version, arrays, asked.resolved(folder.get("settings", {}))
    raise TinyverseError(f"run {asked.run} has no weights yet, neither on a server nor in {asked.folder.path}/. Train it first: tinyverse {asked.experiment} train")


# -- check ----------------------------------------------------------------------------------------------------------


def do_check(asked: Asked) -> list[tuple[str, str]]:
    """Builds everything once: environment, agent, a session, the codec, an update; rows of (what, what was seen)."""
    machine.set_threads(1)
    rows: list[tuple[str, str]] = []

    def timed(what: str, function: Callable[[], Any], say: Callable[[Any], str] = str) -> Any:
        began = time.perf_counter()
        made = function()
        rows.append((what, f"{say(made)}  ({1000 * (time.perf_counter() - began):.1f} ms)"))
        return made

    settings = asked.resolved({})
    experiment = timed("experiment", lambda: loader.build(asked.module, settings), lambda _: json.dumps(settings, default=str))
    pool = timed("games", lambda: experiment.pool(experiment.games))
    agent = timed("agent", experiment.agent, lambda made: f"{type(made).__name__}, {sum(a.size for a in made.get_weights().values()):,} weights")
    spec = timed("spec", lambda: experiment.spec(agent), lambda made: f"{len(made.fields)} arrays, {monitor.size(made.nbytes)} a session")
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=asked.fresh_seed())
    player.version, player.update = 0, 0
    rollout = timed("playing", player.play, lambda made: f"{made.alive.size} steps of {made.num_games} games")
    session = rollout.sessions("check", 0)[0]
    blob = timed("encoding", session.encode, lambda made: f"{monitor.size(len(made))}, {spec.nbytes / len(made):.1f} times smaller")
    timed("decoding", lambda: spec.decode(blob), lambda _: "the same")
    learner = timed("learner", lambda: experiment.learner(agent), lambda made: type(made).__name__)
    replay = Replay(spec, Flow(batch=1, buffer_size=max(1, experiment.games), reuse=None), sampler_of(experiment.sampler))
    for each in rollout.sessions("check", 0):
        replay.add(spec.decode(each.encode()))
    batch = replay.sample()
    metrics = timed("an update", lambda: learner.train_step(batch), lambda made: ", ".join(f"{k} {float(v):.3g}" for k, v in made.items() if k != "priorities"))
    bad = [name for name, value in metrics.items() if name != "priorities" and not np.isfinite(float(value))]
    timed("weights", lambda: encode_weights(learner.get_weights(), version=0, update=0, step=0), lambda made: monitor.size(len(made)))
    pool.close()
    if bad:
        raise TinyverseError(f"{', '.join(bad)} of the first update is not finite. Are observations and rewards finite?")
    return rows


# -- info -----------------------------------------------------------------------------------------------------------


def do_info(asked: Asked, *, watch: bool = False, as_json: bool = False) -> None:
    """Prints what is known of the run, or the names of all runs. Builds nothing, imports no experiment."""
    if not asked.experiment and not asked.name:
        runs = redis_runs(asked)
        print(json.dumps(runs) if as_json else "\n".join(runs) or "there are no runs on this server")
        return
    console = Console()
    with asked.connected(start=False) as database:
        if as_json:
            print(json.dumps(monitor.gather(database, asked.run)))
        elif not watch:
            console.print(monitor.panel(monitor.gather(database, asked.run)))
        else:
            with stop_on_signals() as should_stop, Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
                while not should_stop():
                    live.update(monitor.panel(monitor.gather(database, asked.run)), refresh=True)
                    time.sleep(1.0)


def redis_runs(asked: Asked) -> list[str]:
    """The names of the runs on the server."""
    address = redis_server.find_server(asked.redis, asked.host, asked.port, asked.password, start=False)
    with redis_server.errors(address.url), redis_server.connect(address.url) as client:
        return list_runs(client)


# -- stop and clear -------------------------------------------------------------------------------------------------


def do_stop(asked: Asked, *, wait: float = 15.0) -> tuple[int, int]:
    """Asks every worker of the run to leave; returns (how many were there, how many still are after `wait` seconds)."""
    with asked.connected(start=False) as database:
        before = len(database.workers())
        database.ask_stop()
        ends = time.monotonic() + wait
        while database.workers() and time.monotonic() < ends:
            time.sleep(0.1)
        return before, len(database.workers())


def do_clear(asked: Asked, *, keep_weights: bool = False, force: bool = False) -> None:
    """Removes the run from the database; its folder stays."""
    with asked.connected(start=False) as database:
        workers = database.workers()
        if workers and not force:
            who = ", ".join(f"{worker.role} on {worker.host} (pid {worker.pid})" for worker in workers[:3])
            raise RunConflict(f"run {asked.run} is at work: {who}. Stop it first (tinyverse {asked.experiment} stop), or add --force.")
        database.clear(keep_weights)


def or_after(minutes: float | None, should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, or so many minutes from now."""
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    return lambda: should_stop() or time.monotonic() > ends


def check_learning(learning: Learning) -> None:
    positive(
        batch=learning.batch, updates=learning.updates, publish_every=learning.publish_every,
        buffer_size=learning.buffer_size, threads=learning.threads,
    )  # fmt: skip
    check_device(learning.device)


def check_device(device: str) -> None:
    """Raises SettingsError unless torch can use the device here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}. Try cpu.") from None


def _seed_everything(seed: int) -> None:
    import random

    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
