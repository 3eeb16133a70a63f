"""The command `eval`: how good are these weights? Plays whole episodes with them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tinyverse.cli.context import RECORDS, RunContext, positive
from tinyverse.cli.devices import acting, check_device
from tinyverse.cli.options import RunCommand, weights_option
from tinyverse.cli.weights import WeightsTracker, weights_for
from tinyverse.core import system
from tinyverse.core.errors import DatabaseError, DatabaseLost, NoWeights, ServerError, SettingsError
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.timing import Waiting
from tinyverse.core.weights import WeightsFile
from tinyverse.database.base import HEARTBEAT_SECONDS, new_worker
from tinyverse.database.heartbeat import BackgroundHeartbeat
from tinyverse.experiment import loader
from tinyverse.monitoring.progress import Share
from tinyverse.monitoring.writers import TensorBoard

if TYPE_CHECKING:
    from tinyverse.player.evaluator import Evaluation


@click.command("eval", cls=RunCommand)
@click.option("-n", "episodes", type=int, default=1, show_default=True, help="Episodes to play.")
@click.option("-b", "at_once", type=int, default=1, show_default=True, help="Episodes at once.")
@click.option("-j", "jobs", type=int, default=1, show_default=True, help="Processes.")
@click.option(
    "--greedy/--sampled", default=None, help="The likeliest action, or a sample [Q-learners greedy, others sampled]."
)
@click.option("--render", is_flag=True, help="Show the first episode in a window.")
@weights_option
@click.option("--video/--no-video", default=True, show_default=True, help="Record the first episode into ./records.")
@click.option("--every", type=float, is_flag=False, flag_value=1.0, metavar="[SECONDS]", help="Go on with the newest weights, at most once in so many seconds [1], and keep the best.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="Where to act.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per evaluation.")
def evaluate(
    context: RunContext, *, episodes: int, at_once: int, jobs: int, greedy: bool | None, render: bool, weights: str | None, video: bool,
    every: float | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Plays whole episodes: mean ± standard error, and a video."""
    positive(episodes=episodes, at_once=at_once, jobs=jobs)
    check_device(device)
    if every is not None and not every > 0:
        raise SettingsError(f"--every {every:g}: give a number of seconds above 0.")
    system.set_threads(1)
    context.bars = not as_json
    if not render:
        system.use_headless_sdl()
    tracker = WeightsTracker()
    options: dict[str, Any] = {"at_once": at_once, "greedy": greedy, "render": render, "video": video}
    with contextlib.ExitStack() as stack:
        asked_to_stop = stack.enter_context(stop_on_signals())
        worker, waiting = new_worker("eval", num_envs=at_once), Waiting()
        heartbeat = BackgroundHeartbeat(functools.partial(context.connected, start=False), worker, waiting)
        if every is not None:
            waiting.set("weights")
            stack.enter_context(heartbeat)

        def should_stop() -> bool:
            return asked_to_stop() or heartbeat.stopped

        while not (should_stop() or tracker.stopped):
            began = time.monotonic()
            try:
                found = weights_for(context, weights, tracker)
            except (NoWeights, DatabaseLost) as error:
                if every is None:
                    raise
                found = None
                if tracker.complaint != str(error):
                    context.say(f"{error} Trying again.")
                tracker.complaint = str(error)
            if found is not None:
                waiting.set("")
                worker.version = found.version
                now = _evaluate(context, found, should_stop, episodes=episodes, jobs=jobs, device=device, **options)
                if len(now.returns) < episodes and should_stop():
                    if every is None:
                        raise KeyboardInterrupt
                    break
                tracker.version, steps = found.version, sum(now.lengths)
                worker.steps, worker.steps_per_second = worker.steps + steps, steps / max(now.seconds, 1e-3)
                waiting.set("newer weights")
                if every is not None:
                    _record(context, found, now, tracker)
                elif weights in (None, "best") or weights.isdigit():  # those of a file may be another run's
                    with contextlib.suppress(OSError):  # the folder may be somebody else's, or not here
                        context.folder.log(_row(found, now), "evaluations")
                _print(context, now, as_json, video=video and not render)
            if every is None:
                break
            while time.monotonic() < began + max(every, HEARTBEAT_SECONDS) and not should_stop():
                time.sleep(min(0.2, HEARTBEAT_SECONDS))


def _print(context: RunContext, result: Evaluation, as_json: bool, video: bool) -> None:
    if as_json:
        facts = {
            "run": context.run, "version": result.version, "mean": result.mean, "returns": result.returns,
            "lengths": result.lengths, "mode": result.mode, "standard_error": None if len(result.returns) < 2 else result.standard_error,
            "video": result.video and str(result.video),
        }  # fmt: skip
        print(json.dumps(facts), flush=True)
        return
    print(f"{context.run}: {result}", flush=True)
    if video:
        print(f"video: {result.video}" if result.video else result.note, flush=True)


def _evaluate(
    context: RunContext, found: WeightsFile, should_stop: Callable[[], bool], *, episodes: int = 1, at_once: int = 1, jobs: int = 1,
    greedy: bool | None = None, render: bool = False, video: bool = False, device: str = "cpu",
) -> Evaluation:  # fmt: skip
    from tinyverse.player.evaluator import evaluate, evaluate_in_processes

    file = RECORDS / f"{context.run}-v{found.version}.webm" if video and not render else None
    make = functools.partial(loader.rebuild, context.experiment, found.run_config["settings"])
    with context.bar("episodes", episodes) as bar:

        def on_episode(done: int, total: float) -> None:
            bar.share = Share(f"episodes (the last returned {total:.2f})", done, episodes)

        options: dict[str, Any] = {
            "episodes": episodes, "at_once": at_once, "greedy": greedy, "seed": context.fresh_seed(), "video": file, "render": render,
            "on_episode": on_episode,
        }  # fmt: skip
        if jobs > 1:
            result = evaluate_in_processes(make, found.weights, jobs=jobs, **options)
        else:
            experiment = make()
            agent = acting(experiment.agent(), device, "fp32")
            agent.set_weights(found.weights)
            result = evaluate(experiment, agent, should_stop=should_stop, **options)
    return dataclasses.replace(result, version=found.version)


def _record(context: RunContext, found: WeightsFile, result: Evaluation, tracker: WeightsTracker) -> None:
    """Keeps the weights if they are the best, and logs the score in the folder, its TensorBoard and for `info`."""
    row = _row(found, result)
    score = {
        "mean": result.mean,
        "standard_error": row["eval/standard_error"],
        "episodes": len(result.returns),
        "greedy": int(result.greedy),
    }
    row["eval/best"] = context.folder.keep_best(found._replace(score=score))
    context.folder.log(row)
    tracker.events = tracker.events or TensorBoard(context.folder, "eval")
    tracker.events.write(row)
    if result.video is not None:
        tracker.events.video("eval/video", result.video, found.step)
    tracker.events.flush()
    with contextlib.suppress(ServerError, DatabaseError), context.connected(start=False) as database:
        database.log_metrics(row)


def _row(found: WeightsFile, result: Evaluation) -> dict[str, Any]:
    """An evaluation for a log."""
    return {
        "step": found.step, "update": found.update, "version": found.version, "eval/return": result.mean,
        "eval/standard_error": None if math.isnan(result.standard_error) else result.standard_error,
        "eval/episodes": len(result.returns), "eval/greedy": int(result.greedy), "eval/length": float(np.mean(result.lengths)),
    }  # fmt: skip
