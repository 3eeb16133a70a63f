"""The command `play`: joins a run, adopts its settings, and steps environments until it is told to stop."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from tinyverse.cli.context import RunContext, positive
from tinyverse.cli.devices import acting, check_device
from tinyverse.cli.options import STEPPING_OPTIONS, RunCommand
from tinyverse.core import system
from tinyverse.core.errors import DatabaseError, DatabaseLost, SettingsError, WindowClosed
from tinyverse.core.run_config import check_can_join, check_spec, experiment_and_settings
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.timing import Waiting
from tinyverse.database.base import HEARTBEAT_SECONDS, Database, log_error, new_worker
from tinyverse.database.heartbeat import Heartbeat
from tinyverse.experiment import loader
from tinyverse.monitoring.progress import Progress, Share

if TYPE_CHECKING:
    from tinyverse.envs.pool import Pool
    from tinyverse.player.player import Player
    from tinyverse.player.uploader import Uploader


@click.command(cls=RunCommand, params=[*STEPPING_OPTIONS])
@click.option("-b", "--num-envs", type=int, help="Environments stepped at once [the experiment's, else 1].")
@click.option("-n", "batches", type=int, help="Batches of sessions to play [no end].")
@click.option("-s", "sync_every", type=int, default=1, show_default=True, help="Batches between two checks for new weights.")  # fmt: skip
@click.option("--cores", type=int, default=1, show_default=True, help="With 2 or more, environments are stepped while the agent acts.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where to act.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="Of acting [the experiment's].")
@click.option("--human", is_flag=True, help="You play, in a window; the experiment or its environment names the keys.")
@click.option("--fps", type=float, help="Steps a second of --human [the environment's].")
def play(
    context: RunContext, *, num_envs: int | None, batches: int | None, sync_every: int, cores: int, workers: int, step_timeout: float | None,
    worker_memory: int | None, device: str, precision: str | None, human: bool, fps: float | None,
) -> None:  # fmt: skip
    """Steps a batch of environments and pushes sessions."""
    from tinyverse.envs.process_pool import ProcessPool, resident_memory

    positive(
        num_envs=num_envs, batches=batches, sync_every=sync_every, cores=cores, step_timeout=step_timeout,
        worker_memory=worker_memory,
    )  # fmt: skip
    if workers < 0:
        raise SettingsError(f"workers is {workers}; it must be at least 1, or 0 for none.")
    if worker_memory and not resident_memory():
        raise SettingsError("--worker-memory reads /proc, which this system has not: leave it out.")
    if step_timeout or worker_memory:
        workers = workers or 1  # what hangs or leaks can only be ended with the process it is in
    if human and ((num_envs or 1) > 1 or cores > 1 or workers):
        raise SettingsError(
            "a person plays one environment: leave out -b, --cores, --workers, --step-timeout and --worker-memory with --human."
        )
    if fps is not None and not (human and 0 < fps <= 1000):
        raise SettingsError(f"--fps {fps:g} is for --human, and between 0 and 1000 steps a second.")
    check_device(device)
    context.resolved({})  # what is wrong with the experiment or its settings is said before a server is started

    from tinyverse.player.human import HumanControls
    from tinyverse.player.loop import play as play_on
    from tinyverse.player.player import SEEDS_APART, Player
    from tinyverse.player.uploader import Uploader

    with context.connected() as database, stop_on_signals() as interrupted:
        meta = _await_run(context, database, interrupted)
        if not meta:
            return
        system.set_threads(1)
        settings = context.resolved(experiment_and_settings(meta)["settings"])
        experiment = loader.build(context.module, settings)
        agent, spare = (acting(experiment.agent(), device, precision or experiment.precision) for _ in range(2))
        check_spec(context.run, meta, experiment.spec(agent))
        seed = context.fresh_seed()
        counts = _halves(num_envs or experiment.num_envs, min(cores, workers or cores))
        person = HumanControls(experiment, context.run, fps) if human else None
        if person is not None:
            agent, spare = person.agent(agent), person.agent(spare)
            pools: list[Pool] = [person.pool]
        elif workers:
            make = functools.partial(envs_of, context.experiment, settings)
            limits: dict[str, Any] = {"step_timeout": step_timeout, "memory": worker_memory and worker_memory << 20}
            shares = [workers] if len(counts) == 1 else _halves(workers, 2)  # each pool has processes of its own
            pools = [
                ProcessPool(make, count, share, experiment.spaces(), realtime=experiment.realtime, **limits)
                for count, share in zip(counts, shares, strict=True)
            ]
        else:
            pools = [
                experiment.pool(count, cores, seed=seed + SEEDS_APART * half, restart=True)
                for half, count in enumerate(counts)
            ]
        player = Player(agent, pools, experiment.unroll_length, seed=seed)
        worker = new_worker("human" if human else "play", num_envs=player.num_envs, frame_skip=experiment.frame_skip)
        uploader = Uploader(database, worker, spare)
        uploader.start()
        context.say(f"playing {counted(player.num_envs, 'environment')} of run {context.run}")

        def share_done() -> Share | None:
            return Share("batches", worker.sessions // worker.num_envs, batches) if batches else None

        def should_stop() -> bool:
            return interrupted() or (person is not None and person.window.closed)

        def on_batch() -> None:
            progress.turn()
            if person is not None:
                person.window.refresh()

        progress = Progress(lambda: _player_line(player, uploader), share=share_done, quiet=context.quiet)
        realtime = pools[0].realtime or experiment.realtime
        try:
            with progress:
                play_on(
                    player, uploader, batches=batches, sync_every=sync_every, realtime=realtime,
                    should_stop=should_stop, on_batch=on_batch,
                )  # fmt: skip
        except WindowClosed:
            context.say("the window was closed; what was not yet a whole session is not pushed")
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


def _halves(count: int, among: int) -> list[int]:
    """`count` as one part, or among two and more as two: one is stepped while the agent acts in the other."""
    return [count] if min(count, among) == 1 else [count - count // 2, count // 2]


def envs_of(name: str, settings: Mapping[str, Any], num_envs: int) -> Pool:
    """Environments of an experiment in a process of their own."""
    return loader.rebuild(name, settings).pool(num_envs, restart=True)


def _await_run(context: RunContext, database: Database, should_stop: Callable[[], bool]) -> dict[str, str]:
    """The run's config, once a trainer has created it; {} if interrupted before."""
    meta = database.meta()
    if not meta:
        context.say(f"waiting for a trainer of run {context.run} ({context.command('train')})")
        waiting = Waiting()
        waiting.set("a trainer to create the run")
        heartbeat = Heartbeat(database, new_worker("play"), waiting)
        while not (meta or should_stop() or heartbeat.stop.is_set):
            time.sleep(HEARTBEAT_SECONDS / 4)
            with contextlib.suppress(DatabaseLost):  # it may come back, as for those at work
                heartbeat.beat()
                meta = database.meta()
        with contextlib.suppress(DatabaseLost):
            database.leave(heartbeat.worker.id)
        if heartbeat.stop.is_set:
            return {}
    check_can_join(context.run, experiment_and_settings(meta), context.title, context.given)
    return meta


def _player_line(player: Player, uploader: Uploader) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in uploader.worker.stages.items())
    stages = f" ({shares})" if shares else ""
    waits = f", waits for {uploader.waiting.reason}" if uploader.waiting.reason else ""
    return (
        f"play: {player.rate.per_second():,.0f} steps/s, {counted(player.rate.total, 'step')}, version {player.version}, "
        f"{counted(uploader.worker.sessions, 'session')} pushed{waits}{stages}"
    )
