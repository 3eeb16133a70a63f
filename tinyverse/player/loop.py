"""Loop: a player and its uploader work until they are told to stop."""

from collections.abc import Callable

from tinyverse.core.timing import Ticker
from tinyverse.player.player import Player
from tinyverse.player.rollout import Rollout
from tinyverse.player.uploader import Uploader

STAGES_SECONDS = 5.0  # over which a player's shares of time are measured


def play(
    player: Player, uploader: Uploader, *, batches: int | None = None, sync_every: int = 1, realtime: bool = False,
    should_stop: Callable[[], bool] = lambda: False, on_batch: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Plays until `batches` are played, the run is stopped, or `should_stop`; returns the number of batches.

    Args:
        batches: number of sessions of each environment; None: no end.
        sync_every: batches between two checks for newer weights.
        realtime: drop sessions that the uploader cannot take at once, because the environments do not wait.
        on_batch: called before each batch, and ten times a second while the player waits.
    """
    run_id, played, stages = uploader.run_id, 0, Ticker(STAGES_SECONDS)
    while (batches is None or played < batches) and not should_stop() and not uploader.heartbeat.stop.is_set:
        uploader.raise_failure()
        on_batch()
        if uploader.run_id != run_id:
            run_id, player.version = uploader.run_id, -1
        if player.version < 0 or played % sync_every == 0:
            uploader.refresh()
        if (newer := uploader.swap(player.agent)) is not None:
            player.agent, player.version, player.update = newer
        uploader.waiting.set(_reason(player, uploader, realtime))
        if uploader.waiting.reason:
            uploader.heard.wait(0.1)
            uploader.heard.clear()
            continue
        rollout = player.play()
        _note(player, uploader, with_stages=stages.due())
        _hand_over(rollout, uploader, realtime, should_stop)
        played += 1
    uploader.raise_failure()
    return played


def _reason(player: Player, uploader: Uploader, realtime: bool) -> str:
    """Returns what the player waits for, or "" when it may play."""
    if player.version < 0 and not (realtime and player.rate.total):  # what has begun in real time cannot wait
        return "a trainer's weights"
    if not realtime and not uploader.may_play():
        return f"the trainer, which is {uploader.state.deficit:.0f} samples behind"
    return ""


def _note(player: Player, uploader: Uploader, with_stages: bool) -> None:
    """Updates the facts that heartbeats carry."""
    worker, faults = uploader.worker, sum(pool.faults for pool in player.pools)
    worker.steps, worker.steps_per_second = player.rate.total, player.rate.per_second()
    worker.version, worker.lag = player.version, max(0, uploader.state.update - player.update)
    if faults > worker.faults:
        worker.error = max(player.pools, key=lambda pool: pool.faults).fault
    worker.faults = faults
    if with_stages:
        worker.stages = player.stages.take()


def _hand_over(rollout: Rollout, uploader: Uploader, realtime: bool, should_stop: Callable[[], bool]) -> None:
    """Gives the rollout to the uploader, and in real time does not wait for room."""
    if realtime:  # without a version it was played after the server had been emptied, so no trainer knows its weights
        if rollout.version < 0 or not uploader.offer(rollout, timeout=0.0):
            uploader.worker.dropped += rollout.num_envs
        return
    while not uploader.offer(rollout, timeout=0.2):
        uploader.waiting.set("the database")
        if should_stop() or uploader.failure is not None:
            return
