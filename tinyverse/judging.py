"""Judging: the verbs `eval` and `check`. How good are these weights, and does this experiment work at all?"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinyverse import loader, machine, monitor
from tinyverse.asked import RECORDS, Asked, positive, stop_on_signals
from tinyverse.errors import ServerError, SettingsError, TinyverseError
from tinyverse.evaluator import Evaluation, evaluate, evaluate_in_processes
from tinyverse.experiment import Experiment
from tinyverse.player import HEARTBEAT_SECONDS, Player
from tinyverse.playing import acting, check_device
from tinyverse.replay import Flow, Replay
from tinyverse.run import agreed_of, check_agreed, load_weights_file
from tinyverse.samplers import sampler_of
from tinyverse.timing import Ticker
from tinyverse.weights import decode_weights, encode_weights


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
                result = _evaluate_version(
                    asked, version, arrays, settings, games, at_once, jobs, greedy, render, video, device
                )
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
    options: dict[str, Any] = {
        "at_once": at_once or 1,
        "greedy": greedy,
        "seed": asked.fresh_seed(),
        "video": film,
        "render": render,
    }
    make = functools.partial(_rebuild, asked.experiment, settings)
    if jobs > 1:
        result = evaluate_in_processes(make, arrays, jobs=jobs, games=games, **options)
    else:
        experiment = make()
        agent = acting(experiment.agent(), device, "fp32")
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
            raise SettingsError(
                f"--weights {weights} is neither a file here nor the number of a version. Checkpoints lie in {asked.folder.checkpoints}/."
            )
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
            raise SettingsError(
                f"run {asked.run} has no version {weights}; the newest is {database.state().version}, and 3 are kept."
            )
    if (checkpoint := asked.folder.newest()) is not None:
        version, arrays = load_weights_file(checkpoint)
        return version, arrays, asked.resolved(folder.get("settings", {}))
    raise TinyverseError(
        f"run {asked.run} has no weights yet, neither on a server nor in {asked.folder.path}/. Train it first: tinyverse {asked.experiment} train"
    )


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
        lambda made: f"{len(made.fields)} arrays, {monitor.size(made.nbytes)} a session",
    )
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=asked.fresh_seed())
    player.version, player.update = 0, 0
    rollout = timed("playing", player.play, lambda made: f"{made.alive.size} steps of {made.num_games} games")
    session = rollout.sessions("check", 0)[0]
    blob = timed(
        "encoding",
        session.encode,
        lambda made: f"{monitor.size(len(made))}, {spec.nbytes / len(made):.1f} times smaller",
    )
    timed("decoding", lambda: spec.decode(blob), lambda _: "the same")
    learner = timed("learner", lambda: experiment.learner(agent), lambda made: type(made).__name__)
    flow = Flow(batch=experiment.batch, buffer_size=experiment.batch + experiment.games, reuse=None)
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
        lambda made: monitor.size(len(made)),
    )
    pool.close()
    if bad:
        raise TinyverseError(
            f"{', '.join(bad)} of the first update is not finite. Are observations and rewards finite?"
        )
    return rows
