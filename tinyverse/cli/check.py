"""The command `check`: does this experiment work at all? Builds everything once."""

from __future__ import annotations

import functools
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
from tinyverse.monitoring import metrics


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
    shown = json.dumps(settings, default=str)
    experiment = timed("experiment", lambda: loader.build(context.module, settings), lambda _: shown)
    pool = timed("environments", lambda: experiment.pool(experiment.num_envs))

    def show_agent(agent: Any) -> str:
        return f"{type(agent).__name__}, {sum(array.size for array in agent.get_weights().values()):,} weights"

    agent = timed("agent", experiment.agent, show_agent)

    def show_spec(spec: Any) -> str:
        return f"{len(spec.fields)} arrays, {metrics.size(spec.nbytes)} a session"

    spec = timed("spec", lambda: experiment.spec(agent), show_spec)
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=context.fresh_seed())
    player.version, player.update = 0, 0

    def show_rollout(rollout: Any) -> str:
        return f"{counted(rollout.valid.size, 'step')} of {counted(rollout.num_envs, 'environment')}"

    rollout = timed("playing", player.play, show_rollout)
    session = rollout.sessions("check", 0)[0]

    def show_blob(blob: bytes) -> str:
        return f"{metrics.size(len(blob))}, {spec.nbytes / len(blob):.1f} times smaller"

    blob = timed("encoding", session.encode, show_blob)
    timed("decoding", lambda: spec.decode(blob), lambda _: "the same")
    learner = timed("learner", lambda: experiment.learner(agent), lambda made: type(made).__name__)
    config = ReplayConfig(
        batch_size=experiment.batch_size, buffer_size=experiment.batch_size + experiment.num_envs, reuse=None
    )
    replay = Replay(spec, config, sampler_of(experiment.sampler))
    while (batch := replay.sample(length=learner.length, burn_in=learner.burn_in)) is None:
        for each in rollout.sessions("check", 0):
            replay.add(spec.decode(each.encode()))
        if len(replay) < config.batch_size:
            rollout = player.play()

    def numbers(row: Any) -> dict[str, float]:
        return {name: float(value) for name, value in row.items() if name != "priorities"}

    def show_numbers(row: Any) -> str:
        return ", ".join(f"{name} {value:.3g}" for name, value in numbers(row).items())

    row = timed("an update", lambda: learner.train_step(batch), show_numbers)
    bad = [name for name, value in numbers(row).items() if not np.isfinite(value)]
    weights = functools.partial(encode_weights, learner.get_weights(), version=0, update=0, step=0)
    timed("weights", weights, lambda made: metrics.size(len(made)))
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
