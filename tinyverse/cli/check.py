"""The command `check`: does this experiment work at all? Builds everything once."""

import contextlib
import json
import math
import time
from collections.abc import Iterator

import click

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
    """Builds everything once and shows names, shapes, bytes and milliseconds."""
    from tinyverse.player.player import Player
    from tinyverse.replay.buffer import Replay
    from tinyverse.replay.config import ReplayConfig
    from tinyverse.replay.samplers import sampler_of

    system.set_threads(1)
    rows: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[list[str]]:
        """Adds a row: what is put into the list, and how long it took."""
        facts: list[str] = []
        began = time.perf_counter()
        with context.bar(f"check: {what}"):
            yield facts
        rows.append((what, f"{' '.join(facts)}  ({1000 * (time.perf_counter() - began):.1f} ms)"))

    settings = context.resolved({})
    with timed("experiment") as facts:
        experiment = loader.build(context.module, settings)
        facts.append(json.dumps(settings, default=str))
    with timed("environments") as facts:
        pool = experiment.pool(experiment.num_envs)
        facts.append(str(pool))
    with timed("agent") as facts:
        agent = experiment.agent()
        size = sum(array.size for array in agent.get_weights().values())
        facts.append(f"{type(agent).__name__}, {size:,} weights")
    with timed("spec") as facts:
        spec = experiment.spec(agent)
        facts.append(f"{len(spec.fields)} arrays, {metrics.size(spec.nbytes)} a session")
    rows += [(f"  {name}", f"{dtype} {list(shape)}") for name, (shape, dtype) in spec.fields.items()]
    player = Player(agent, pool, experiment.unroll_length, seed=context.fresh_seed())
    player.version, player.update = 0, 0
    with timed("playing") as facts:
        rollout = player.play()
        facts.append(f"{counted(rollout.valid.size, 'step')} of {counted(rollout.num_envs, 'environment')}")
    session = rollout.sessions("check", 0)[0]
    with timed("encoding") as facts:
        blob = session.encode()
        facts.append(f"{metrics.size(len(blob))}, {spec.nbytes / len(blob):.1f} times smaller")
    with timed("decoding") as facts:
        spec.decode(blob)
        facts.append("the same")
    with timed("learner") as facts:
        learner = experiment.learner(agent)
        facts.append(type(learner).__name__)
    batch_size = experiment.batch_size
    config = ReplayConfig(batch_size=batch_size, buffer_size=batch_size + experiment.num_envs, reuse=None)
    replay = Replay(spec, config, sampler_of(experiment.sampler))
    while (batch := replay.sample(length=learner.length, burn_in=learner.burn_in)) is None:
        for each in rollout.sessions("check", 0):
            replay.add(spec.decode(each.encode()))
        if len(replay) < config.batch_size:
            rollout = player.play()
    with timed("an update") as facts:
        row = {name: float(value) for name, value in learner.train_step(batch).items() if name != "priorities"}
        facts.append(", ".join(f"{name} {value:.3g}" for name, value in row.items()))
    with timed("weights") as facts:
        facts.append(metrics.size(len(encode_weights(learner.get_weights(), version=0, update=0, step=0))))
    pool.close()
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if bad:
        raise TinyverseError(f"{', '.join(bad)} of an update is not finite. Are observations and rewards finite?")
    width = max(len(what) for what, _ in rows)
    for what, seen in rows:
        print(f"{what:<{width}}  {seen}")
    print("all is well")
    return rows
