"""The command `check`: does this experiment work at all? Builds everything once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from tinyverse.cli.context import RunContext
from tinyverse.cli.options import RunCommand
from tinyverse.core import system
from tinyverse.core.errors import TinyverseError
from tinyverse.core.text import counted
from tinyverse.core.weights import encode_weights
from tinyverse.experiment import loader


@click.command(cls=RunCommand)
def check(context: RunContext) -> list[tuple[str, str]]:
    """Builds everything once and shows names, shapes, bytes and milliseconds.

    Example: tinyverse my_game.py check
    """
    from tinyverse.player.player import Player
    from tinyverse.replay.buffer import Replay
    from tinyverse.replay.config import ReplayConfig
    from tinyverse.replay.samplers import sampler_of

    system.set_threads(1)
    rows: list[tuple[str, str]] = []

    def timed(what: str, function: Callable[[], Any], say: Callable[[Any], str] = str) -> Any:
        began = time.perf_counter()
        with context.bar(f"check: {what}"):
            made = function()
        rows.append((what, f"{say(made)}  ({1000 * (time.perf_counter() - began):.1f} ms)"))
        return made

    settings = context.resolved({})
    experiment = timed(
        "experiment", lambda: loader.build(context.module, settings), lambda _: json.dumps(settings, default=str)
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
        lambda made: f"{len(made.fields)} arrays, {metrics.size(made.nbytes)} a session",
    )
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=context.fresh_seed())
    player.version, player.update = 0, 0
    rollout = timed(
        "playing", player.play, lambda made: f"{counted(made.alive.size, 'step')} of {counted(made.num_games, 'game')}"
    )
    session = rollout.sessions("check", 0)[0]
    blob = timed(
        "encoding",
        session.encode,
        lambda made: f"{metrics.size(len(made))}, {spec.nbytes / len(made):.1f} times smaller",
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
        lambda made: metrics.size(len(made)),
    )
    pool.close()
    if bad:
        raise TinyverseError(
            f"{', '.join(bad)} of the first update is not finite. Are observations and rewards finite?"
        )
    width = max(len(what) for what, _ in rows)
    for what, seen in rows:
        print(f"{what:<{width}}  {seen}")
    print("all is well")
    return rows
