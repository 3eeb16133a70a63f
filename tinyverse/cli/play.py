"""Playing: the verb `play`. Joins a run, adopts its settings, and steps games until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from tinyverse.agents.agent import Agent
from tinyverse.cli.context import Asked, positive
from tinyverse.core import system
from tinyverse.core.errors import DatabaseError, DatabaseLost, SettingsError, WindowClosed
from tinyverse.core.run_config import check_can_join, check_spec, experiment_and_settings
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.timing import Waiting
from tinyverse.database.base import HEARTBEAT_SECONDS, Database, log_error, new_worker
from tinyverse.database.heartbeat import Heartbeat
from tinyverse.envs.pool import Pool
from tinyverse.envs.process_pool import ProcessPool, can_measure_memory
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.monitoring.progress import Progress, Share
from tinyverse.player.human import HumanControls
from tinyverse.player.loop import play
from tinyverse.player.player import SEEDS_APART, Player
from tinyverse.player.uploader import Uploader


def do_play(
    asked: Asked,
    *,
    games: int | None = None,
    batches: int | None = None,
    sync_every: int = 1,
    cores: int = 1,
    workers: int = 0,
    step_timeout: float | None = None,
    worker_memory: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    human: bool = False,
    fps: float | None = None,
) -> int:
    """Steps games and pushes sessions; returns the batches pushed.

    Args:
        workers: processes that step the games; 0: this one, or one more where a limit below needs it.
        step_timeout: seconds that a step may take; a worker that takes longer is killed and replaced.
        worker_memory: MiB that a worker may grow to.
        human: a person plays one game in a window.
        fps: steps a second then; None: the environment's own.
    """
    positive(
        games=games, batches=batches, sync_every=sync_every, cores=cores, step_timeout=step_timeout,
        worker_memory=worker_memory,
    )  # fmt: skip
    if workers < 0:
        raise SettingsError(f"workers is {workers}; it must be at least 1, or 0 for none.")
    if worker_memory and not can_measure_memory():
        raise SettingsError("--worker-memory reads /proc, which this system has not: leave it out.")
    if step_timeout or worker_memory:
        workers = workers or 1  # what hangs or leaks can only be ended with the process it is in
    if human and ((games or 1) > 1 or cores > 1 or workers):
        raise SettingsError(
            "a person plays one game: leave out -b, --cores, --workers, --step-timeout and --worker-memory with --human."
        )
    if fps is not None and not (human and 0 < fps <= 1000):
        raise SettingsError(f"--fps {fps:g} is for --human, and between 0 and 1000 steps a second.")
    check_device(device)
    asked.load()
    with asked.connected() as database, stop_on_signals() as should_stop:
        meta = _await_run(asked, database, should_stop)
        if not meta:
            return 0
        system.set_threads(1)
        settings = asked.resolved(experiment_and_settings(meta)["settings"])
        experiment = loader.build(asked.module, settings)
        agent, spare = (acting(experiment.agent(), device, precision or experiment.precision) for _ in range(2))
        check_spec(asked.run, meta, experiment.spec(agent))
        seed = asked.fresh_seed()
        person = HumanControls(experiment, asked.run, fps) if human else None
        if person is not None:
            agent, spare = person.agent(agent), person.agent(spare)
            pools: list[Pool] = [person.pool]
        elif workers:
            make = functools.partial(games_of, asked.experiment, settings)
            limits = {"step_timeout": step_timeout, "memory": worker_memory and worker_memory << 20}
            pools = _worker_pools(make, experiment, games or experiment.games, workers, cores, limits)
        else:
            pools = _pools(experiment, games or experiment.games, cores, seed)
        player = Player(agent, pools, experiment.unroll_length, seed=seed)
        worker = new_worker("human" if human else "play", games=player.num_games, frame_skip=experiment.frame_skip)
        uploader = Uploader(database, worker, spare)
        uploader.start()
        asked.say(f"playing {counted(player.num_games, 'game')} of run {asked.run}")
        try:

            def share() -> Share | None:
                return Share("batches", worker.sessions // worker.games, batches) if batches else None

            with Progress(lambda: _player_line(player, uploader), share=share, quiet=asked.quiet) as progress:

                def on_batch() -> None:
                    progress.turn()
                    if person is not None:
                        person.window.look()

                played = play(
                    player, uploader, batches=batches, sync_every=sync_every, realtime=pools[0].realtime or experiment.realtime,
                    should_stop=lambda: should_stop() or (person is not None and person.window.closed), on_batch=on_batch,
                )  # fmt: skip
        except WindowClosed:
            played = worker.sessions
            asked.say("the window was closed; what was not yet a whole session is not pushed")
        except BaseException as error:
            worker.error = f"{type(error).__name__}: {error}"  # stays in `info` until the heartbeat is stale
            log_error(database, worker, error)
            uploader.close()
            raise
        finally:
            player.close()
            if person is not None:
                person.window.close()
        uploader.close()
        uploader.raise_failure()
        with contextlib.suppress(DatabaseError):
            database.leave(worker.id)
        return played


def _pools(experiment: Experiment, games: int, cores: int, seed: int) -> list[Pool]:
    """One pool; on several cores two halves, of which one is stepped while the agent acts in the other."""
    halves = enumerate(_halves(games, cores))
    return [experiment.pool(count, cores, seed=seed + SEEDS_APART * half, restart=True) for half, count in halves]


def _worker_pools(
    make: Callable[[int], Pool], experiment: Experiment, games: int, workers: int, cores: int, limits: Mapping[str, Any]
) -> list[Pool]:
    """As `_pools`, stepped by so many processes; of several, each half has its own."""
    counts = _halves(games, min(cores, workers))
    shares = [workers] if len(counts) == 1 else _halves(workers, 2)
    pools: list[Pool] = []
    for count, share in zip(counts, shares, strict=True):
        pools.append(ProcessPool(make, count, share, experiment.spaces(), realtime=experiment.realtime, **limits))
    return pools


def _halves(count: int, among: int) -> list[int]:
    return [count] if min(count, among) == 1 else [count - count // 2, count // 2]


def games_of(name: str, settings: Mapping[str, Any], num_games: int) -> Pool:
    """Games of an experiment in a process of their own: what crosses is its name and settings, never a closure."""
    return loader.build(loader.load_module(name), settings).pool(num_games, restart=True)


def _await_run(asked: Asked, database: Database, should_stop: Callable[[], bool]) -> dict[str, str]:
    """The run's agreement, once a trainer has created it; {} if asked to stop before."""
    meta = database.meta() or _await_trainer(asked, database, should_stop)
    check_can_join(asked.run, experiment_and_settings(meta), asked.title, asked.given)
    return meta


def _await_trainer(asked: Asked, database: Database, should_stop: Callable[[], bool]) -> dict[str, str]:
    asked.say(f"waiting for a trainer of run {asked.run} (tinyverse {asked.experiment} train)")
    waiting = Waiting()
    waiting.set("a trainer to create the run")
    heartbeat, meta = Heartbeat(database, new_worker("play"), waiting), dict[str, str]()
    while not (meta or should_stop() or heartbeat.stop.is_set):
        time.sleep(HEARTBEAT_SECONDS / 4)
        with contextlib.suppress(DatabaseLost):  # it may come back, as for those at work
            heartbeat.beat()
            meta = database.meta()
    with contextlib.suppress(DatabaseLost):
        database.leave(heartbeat.worker.id)
    return {} if heartbeat.stop.is_set else meta


def _player_line(player: Player, uploader: Uploader) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in uploader.worker.stages.items())
    waits = f", waits for {uploader.waiting.reason}" if uploader.waiting.reason else ""
    return (
        f"play: {player.rate.per_second():,.0f} steps/s, {counted(player.rate.total, 'step')}, version {player.version}, "
        f"{counted(uploader.worker.sessions, 'session')} pushed{waits} ({shares})"
    )


def acting(agent: Agent, device: str, precision: str) -> Agent:
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
    return "bf16" if device.startswith("cuda") or system.has_bfloat16() else "fp32"


def check_device(device: str) -> None:
    """Raises SettingsError unless torch can use the device here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}. Try cpu.") from None
