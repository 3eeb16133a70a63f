"""Judging: the verbs `eval` and `check`. How good are these weights, and does this experiment work at all?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyverse.cli.context import RECORDS, Asked, positive
from tinyverse.cli.play import acting, check_device
from tinyverse.core import system
from tinyverse.core.errors import DatabaseError, DatabaseLost, NoWeights, ServerError, SettingsError, TinyverseError
from tinyverse.core.run_config import check_can_join, experiment_and_settings
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.timing import Waiting
from tinyverse.core.weights import WeightsFile, decode_weights, encode_weights
from tinyverse.database.base import HEARTBEAT_SECONDS, new_worker
from tinyverse.database.heartbeat import BackgroundHeartbeat, StopSignal
from tinyverse.experiment import loader
from tinyverse.experiment.experiment import Experiment
from tinyverse.monitoring.metrics import size
from tinyverse.monitoring.progress import Share
from tinyverse.monitoring.writers import TensorBoard
from tinyverse.player.evaluator import Evaluation, evaluate, evaluate_in_processes
from tinyverse.player.player import Player
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import sampler_of


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
    every: float | None = None,
    device: str = "cpu",
    on_result: Callable[[Evaluation], None] = lambda result: None,
) -> Evaluation | None:
    """Plays whole games with published weights, or with those of the run's folder.

    With `every` it goes on with the newest weights, at most once in so many seconds, until the run is stopped; it logs
    each score and keeps the best weights in the folder.
    """
    positive(games=games, at_once=at_once, jobs=jobs)
    check_device(device)
    if every is not None and not every > 0:
        raise SettingsError(f"--every {every:g}: give a number of seconds above 0.")
    system.set_threads(1)
    if not render:
        system.use_headless_sdl()
    result, seen = None, Seen()
    with contextlib.ExitStack() as stack:
        asked_to_stop = stack.enter_context(stop_on_signals())
        worker, waiting = new_worker("eval", games=at_once or 1), Waiting()
        heartbeat = BackgroundHeartbeat(functools.partial(asked.connected, start=False), worker, waiting)
        if every is not None:
            waiting.set("weights")
            stack.enter_context(heartbeat)

        def should_stop() -> bool:
            return asked_to_stop() or heartbeat.stopped

        while not (should_stop() or seen.stopped):
            began = time.monotonic()
            try:
                found = weights_for(asked, weights, seen)
            except (NoWeights, DatabaseLost) as error:
                if every is None:
                    raise
                found, seen.complaint = None, _say_once(asked, str(error), seen.complaint)
            if found is not None:
                waiting.set("")
                worker.version = found.version
                now = _evaluate(asked, found, games, at_once, jobs, greedy, render, video, device, should_stop)
                if len(now.returns) < games and should_stop():
                    if every is None:
                        raise KeyboardInterrupt
                    break
                seen.version, result = found.version, now
                worker.steps += sum(result.lengths)
                worker.steps_per_second = sum(result.lengths) / max(result.seconds, 1e-3)
                waiting.set("newer weights")
                if every is not None:
                    _record(asked, found, result, seen)
                elif weights in (None, "best") or weights.isdigit():  # those of a file may be another run's
                    with contextlib.suppress(OSError):  # the folder may be somebody else's, or not here
                        asked.folder.log_evaluation(_row(found, result))
                on_result(result)
            if every is None:
                break
            while time.monotonic() < began + max(every, HEARTBEAT_SECONDS) and not should_stop():
                time.sleep(min(0.2, HEARTBEAT_SECONDS))
    return result


@dataclasses.dataclass
class Seen:
    """What a look for weights saw the last time."""

    version: int | None = None
    stop: StopSignal | None = None  # of the run; None before the first look
    complaint: str = ""
    place: str = ""  # where they were newest, as was said
    checkpoint: tuple[Any, ...] = ()  # the folder's newest, and when it was written
    kept: WeightsFile | None = None  # its weights
    events: TensorBoard | None = None  # where evaluations show, once there is one

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop since the first look."""
        return self.stop is not None and self.stop.is_set


def _say_once(asked: Asked, complaint: str, before: str) -> str:
    if complaint != before:
        asked.say(f"{complaint} Trying again.")
    return complaint


def _evaluate(
    asked: Asked, found: WeightsFile, games: int, at_once: int | None, jobs: int, greedy: bool, render: bool,
    video: bool, device: str, should_stop: Callable[[], bool],
) -> Evaluation:  # fmt: skip
    film = RECORDS / f"{asked.run}-v{found.version}.webm" if video and not render else None
    options: dict[str, Any] = {
        "at_once": at_once or 1,
        "greedy": greedy,
        "seed": asked.fresh_seed(),
        "video": film,
        "render": render,
    }
    make = functools.partial(rebuild, asked.experiment, found.agreed["settings"])
    with asked.bar("games", games) as bar:

        def on_game(done: int, total: float) -> None:
            bar.share = Share(f"games (the last returned {total:.2f})", done, games)

        if jobs > 1:
            result = evaluate_in_processes(make, found.weights, jobs=jobs, games=games, on_game=on_game, **options)
        else:
            experiment = make()
            agent = acting(experiment.agent(), device, "fp32")
            agent.set_weights(found.weights)
            result = evaluate(experiment, agent, games=games, on_game=on_game, should_stop=should_stop, **options)
    return dataclasses.replace(result, version=found.version)


def _record(asked: Asked, found: WeightsFile, result: Evaluation, seen: Seen) -> None:
    """Keeps the weights if they are the best, and logs the score in the folder, its TensorBoard and for `info`."""
    row = _row(found, result)
    score = {"mean": result.mean, "standard_error": row["eval/standard_error"], "games": len(result.returns)}
    row["eval/best"] = asked.folder.keep_best(found._replace(score=score))
    asked.folder.log(row)
    seen.events = seen.events or TensorBoard(asked.folder, "eval")
    seen.events.write(row)
    if result.video is not None:
        seen.events.video("eval/video", result.video, found.step)
    seen.events.flush()
    with contextlib.suppress(ServerError, DatabaseError), asked.connected(start=False) as database:
        database.log_metrics(row)


def _row(found: WeightsFile, result: Evaluation) -> dict[str, Any]:
    """An evaluation for a log."""
    return {
        "step": found.step, "update": found.update, "version": found.version, "eval/return": result.mean,
        "eval/standard_error": None if math.isnan(result.standard_error) else result.standard_error,
        "eval/games": len(result.returns), "eval/length": float(np.mean(result.lengths)),
    }  # fmt: skip


def rebuild(experiment: str, settings: Mapping[str, Any]) -> Experiment:
    """The experiment with these settings, in this process or another."""
    return loader.build(loader.load_module(experiment), settings)


def weights_for(asked: Asked, weights: str | None, seen: Seen) -> WeightsFile | None:
    """The weights asked for, with all settings resolved: of a file, the best, a version, else the newest. Versions are
    looked for in the database and in the folder. None where they are what was seen last.

    Raises:
        NoWeights: there are none at all.
        SettingsError: not those that were asked for.
    """
    found = _find(asked, weights, seen)
    if found is None or found.version == seen.version:
        return None
    check_can_join(asked.run, found.agreed, asked.title, asked.given)
    settings = asked.resolved(found.agreed.get("settings", {}))
    return found._replace(agreed={"experiment": asked.title, "settings": settings})


def _find(asked: Asked, weights: str | None, seen: Seen) -> WeightsFile | None:
    folder = asked.folder
    agreed = folder.settings()
    check_can_join(asked.run, agreed, asked.title, asked.given)
    if weights == "best" and not folder.best.exists():
        raise SettingsError(
            f"run {asked.run} has no best weights in {folder.path}/ yet: tinyverse {asked.experiment} eval --every keeps them."
        )
    if weights is not None and not weights.isdigit():
        path = folder.best if weights == "best" else Path(weights)
        if not path.is_file():
            raise SettingsError(
                f"--weights {weights} is neither a file here nor 'best' nor the number of a version. Checkpoints lie in {folder.checkpoints}/."
            )
        found = WeightsFile.read(path)
        if found.agreed.get("experiment", asked.title) != asked.title:
            its = found.agreed["experiment"]
            raise SettingsError(
                f"--weights {weights} is of the experiment {its}, this is {asked.title}: tinyverse {its} eval --weights {weights}"
            )
        return _agreed(found, agreed)
    return _version(asked, None if weights is None else int(weights), seen)


def _version(asked: Asked, wanted: int | None, seen: Seen) -> WeightsFile | None:
    """A version of the database or of the folder; where none is wanted, the newer of what both have."""
    folder, newest = asked.folder, _newest_kept(asked, seen)
    kept = newest if newest is not None and wanted in (None, newest.version) else None
    needless = () if asked.names_server or (wanted is not None and kept is None) else (ServerError,)
    with contextlib.suppress(*needless), asked.connected(start=False) as database:
        state, meta = database.state(), database.meta()
        seen.stop = seen.stop or StopSignal(state)
        seen.stop.hear(state)
        ahead = kept is not None and kept.version > state.version  # `local` went on, or the server lost some
        if seen.stopped or (wanted is None and meta and not ahead and state.version == seen.version):
            return None
        if wanted is None and kept is not None and state.version >= 0:
            _say_which(asked, seen, (kept.version, f"{folder.path}/"), (state.version, "the server"))
        blob = None if ahead else database.get_weights(version=wanted)
        if blob is not None and meta:
            arrays, numbers = decode_weights(blob[1])
            return WeightsFile(arrays, blob[0], numbers["update"], numbers["step"], experiment_and_settings(meta))
        if wanted is not None and kept is None and (meta or newest):
            there = max(state.version, newest.version if newest else -1)
            raise SettingsError(f"run {asked.run} has no version {wanted}; the newest is {there}, and 3 are kept.")
    if kept is not None:
        return _agreed(kept, folder.settings())
    raise NoWeights(
        f"run {asked.run} has no weights yet, neither on a server nor in {folder.path}/. Train it first: tinyverse {asked.experiment} train"
    )


def _newest_kept(asked: Asked, seen: Seen) -> WeightsFile | None:
    """The weights of the folder's newest checkpoint that can be read; each is read once."""
    newest = asked.folder.newest()
    checkpoint = (newest, newest.stat().st_mtime_ns) if newest else ()
    if checkpoint != seen.checkpoint:
        contents = asked.folder.load()
        seen.kept, seen.checkpoint = WeightsFile.of_checkpoint(contents) if contents else None, checkpoint
    return seen.kept


def _say_which(asked: Asked, seen: Seen, *there: tuple[int, str]) -> None:
    """Says which of two versions is taken and from where, if they differ; again only if it is the other place's."""
    (version, place), (older, other) = sorted(there, reverse=True)
    if version != older and place != seen.place:
        asked.say(f"taking version {version}, from {place}; {other} has {older} (--weights {older} takes that)")
        seen.place = place


def _agreed(found: WeightsFile, folder: Mapping[str, Any]) -> WeightsFile:
    """With the folder's settings, where an old checkpoint does not say its own."""
    return found if found.agreed else found._replace(agreed=folder)


def do_check(asked: Asked) -> list[tuple[str, str]]:
    """Builds everything once: environment, agent, a session, the codec, an update; rows of (what, what was seen)."""
    system.set_threads(1)
    rows: list[tuple[str, str]] = []

    def timed(what: str, function: Callable[[], Any], say: Callable[[Any], str] = str) -> Any:
        began = time.perf_counter()
        with asked.bar(f"check: {what}"):
            made = function()
        rows.append((what, f"{say(made)}  ({1000 * (time.perf_counter() - began):.1f} ms)"))
        return made

    settings = asked.resolved({})
    experiment = timed(
        "experiment", lambda: loader.build(asked.module, settings), lambda _: json.dumps(settings, default=str)
    )
    pool = timed("games", lambda: experiment.pool(experiment.games))
    agent = timed(
        "agent",
        experiment.agent,
        lambda made: f"{type(made).__name__}, {sum(a.size for a in made.get_weights().values()):,} weights",
    )
    spec = timed(
        "spec",
        lambda: experiment.spec(agent),
        lambda made: f"{len(made.fields)} arrays, {size(made.nbytes)} a session",
    )
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=asked.fresh_seed())
    player.version, player.update = 0, 0
    rollout = timed(
        "playing", player.play, lambda made: f"{counted(made.alive.size, 'step')} of {counted(made.num_games, 'game')}"
    )
    session = rollout.sessions("check", 0)[0]
    blob = timed(
        "encoding",
        session.encode,
        lambda made: f"{size(len(made))}, {spec.nbytes / len(made):.1f} times smaller",
    )
    timed("decoding", lambda: spec.decode(blob), lambda _: "the same")
    learner = timed("learner", lambda: experiment.learner(agent), lambda made: type(made).__name__)
    flow = ReplayConfig(batch=experiment.batch, buffer_size=experiment.batch + experiment.games, reuse=None)
    replay = Replay(spec, flow, sampler_of(experiment.sampler))
    while (batch := replay.sample(length=learner.length, burn_in=learner.burn_in)) is None:
        for each in rollout.sessions("check", 0):
            replay.add(spec.decode(each.encode()))
        if len(replay) < flow.batch:
            rollout = player.play()
    metrics = timed(
        "an update",
        lambda: learner.train_step(batch),
        lambda made: ", ".join(f"{k} {float(v):.3g}" for k, v in made.items() if k != "priorities"),
    )
    bad = [name for name, value in metrics.items() if name != "priorities" and not np.isfinite(float(value))]
    timed(
        "weights",
        lambda: encode_weights(learner.get_weights(), version=0, update=0, step=0),
        lambda made: size(len(made)),
    )
    pool.close()
    if bad:
        raise TinyverseError(
            f"{', '.join(bad)} of the first update is not finite. Are observations and rewards finite?"
        )
    return rows
