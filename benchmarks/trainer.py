"""One core of a trainer: V-trace on Pong, sessions of 20 steps in batches of 32, Nature's network over 4 frames.

    python benchmarks/trainer.py [--json] [--smoke] [--repeats N]

The unit is steps learned from per second: a step is a row of a session, so a batch has 640. The trainer's process with
all its threads has the first core; the server and a process that pushes sessions have the second. Torch has 1 thread.

ours: `loop.train` with its feeder and publisher, on a real server. Every batch is new, decoded from what was pushed
    meanwhile, and weights are published every 10 updates. Counted from the second update of a turn.
limit: the same learner's `train_step` in the same precision, again and again on one batch that lies in memory.
naive: the same update as it is usually written, in a process whose allocator is as it comes: float32, images divided by
    255, the default memory format, Adam without `fused`. It has one batch in memory too, its frames stacked beforehand.

The sessions were played once by an untrained network. They are pushed again and again under new numbers, as fast as the
trainer takes them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import measure

from tinyverse.core import system
from tinyverse.experiment.experiment import session_spec

if __name__ == "__main__":  # before torch is imported; the processes started here only import this file
    system.prepare()
    os.environ.pop("OMP_WAIT_POLICY", None)  # one thread does not wait, and the naive way has everything as it comes

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.core.batch import Batch
from tinyverse.core.run_config import run_config
from tinyverse.core.session import Session, SessionSpec
from tinyverse.database.base import new_worker
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import private_server
from tinyverse.envs.atari import atari_pool
from tinyverse.networks import ModularNetwork, NatureConv, Window
from tinyverse.networks.bodies import stack_windows
from tinyverse.player.player import Player
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Uniform
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.loop import train
from tinyverse.trainer.trainer import Trainer

STEPS, AT_ONCE, PUBLISH_EVERY, SETTLING = 20, 8, 10, 2
LEARNING_RATE, MAX_NORM, DISCOUNT, VALUE_COST, ENTROPY_COST = 1e-4, 40.0, 0.99, 0.5, 0.01


def main() -> None:
    with measure.session("trainer", __doc__) as bench:
        measure.pinned(0)
        torch.set_num_threads(1)
        batch = 4 if bench.smoke else 32
        pool = atari_pool("pong", batch)
        player = Player(new_agent(pool), pool, STEPS)
        sessions = [session for part in range(8) for session in player.play().sessions("", part * batch)]
        spec = session_spec(pool.observation_space, pool.action_space, player.agent, STEPS)
        with measure.on_core(1), private_server() as server, measure.on_core(0), naive(spec, sessions[:batch]) as way:
            for precision in ("fp32", "bf16")[: 1 + (system.has_bfloat16() and not bench.smoke)]:
                learner = new_learner(pool)
                replay = Replay(spec, ReplayConfig(batch_size=batch, buffer_size=256), Fresh())
                trainer = Trainer(
                    learner.agent, learner, replay, RedisDatabase(server.url, precision), run_config("bench", {}, spec),
                    config=TrainerConfig(publish_every=PUBLISH_EVERY, precision=precision),
                )  # fmt: skip
                trainer.join()
                resident = resident_update(new_learner(pool), one_batch(spec, sessions[:batch]), precision)
                with pushing(server.url, precision, sessions):
                    bench.compare(
                        f"Pong, Nature's network, {STEPS} x {batch}, {precision}",
                        {
                            "ours": live_updates(trainer, 2 if bench.smoke else 2 * PUBLISH_EVERY),
                            "limit": lambda work=resident: measure.rate_of(work, bench.seconds(5.0)),
                            "naive": lambda: way(bench.seconds(5.0)),
                        },
                        at_least={"limit": 0.93, "naive": 1.6 if precision == "fp32" else 3.0},
                    )


def new_agent(pool: Any) -> TorchAgent:
    torch.manual_seed(0)
    return TorchAgent(ModularNetwork(pool.observation_space, pool.action_space, trunk=Window(4, NatureConv())))


def new_learner(pool: Any) -> VTrace:
    return VTrace(new_agent(pool), learning_rate=LEARNING_RATE, optimizer="adam")


def one_batch(spec: SessionSpec, sessions: list[Session]) -> Batch:
    replay = Replay(spec, ReplayConfig(batch_size=len(sessions), buffer_size=len(sessions), reuse=None), Uniform())
    for session in sessions:
        replay.add(session)
    return replay.sample()


def resident_update(learner: VTrace, batch: Batch, precision: str) -> Callable[[], float]:
    def update() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            learner.train_step(batch)
        return float(batch.rewards.numel())

    return update


def live_updates(trainer: Trainer, updates: int) -> measure.Way:
    """A way that makes some updates to settle, and then those it counts."""

    def way() -> float:
        began, ends = trainer.update + SETTLING, {}
        train(
            trainer,
            updates=SETTLING + updates,
            on_turn=lambda: ends.setdefault(trainer.update - began, time.perf_counter()),
        )
        return updates * trainer.replay.config.batch_size * STEPS / (ends[updates] - ends[0])

    return way


@contextlib.contextmanager
def pushing(url: str, run: str, sessions: list[Session]) -> Iterator[None]:
    """A process on the second core that pushes sessions for as long as this lasts."""
    with measure.on_core(1):
        process = multiprocessing.get_context("spawn").Process(target=push, args=(url, run, sessions), daemon=True)
        process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def push(url: str, run: str, sessions: list[Session]) -> None:
    """Sessions under new numbers, encoded as a player does it, whenever the trainer wants some."""
    database, worker, number = RedisDatabase(url, run), new_worker("play"), 0
    state = database.beat(worker)
    while True:
        if not state.may_play:
            time.sleep(0.002)
            state = database.state()
            continue
        blobs = []
        for _ in range(AT_ONCE):
            session = sessions[number % len(sessions)]
            told = {"player": worker.id, "sequence": number, "version": state.version, "update": state.update}
            session.metadata.update({name: str(value) for name, value in told.items()})
            blobs.append(session.encode())
            number += 1
        state = database.append(blobs, worker=worker)


@contextlib.contextmanager
def naive(spec: SessionSpec, sessions: list[Session]) -> Iterator[Callable[[float], float]]:
    """A process of its own for the naive way; gives a function of seconds that returns its rate."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_naive, args=(theirs, spec, sessions), daemon=True)
    process.start()

    def way(seconds: float) -> float:
        ours.send(seconds)
        return ours.recv()

    try:
        yield way
    finally:
        process.terminate()
        process.join()


def serve_naive(pipe: Connection, spec: SessionSpec, sessions: list[Session]) -> None:
    torch.set_num_threads(1)
    batch = one_batch(spec, sessions)
    frames = stack_windows(batch.observations, batch.initial_state["trunk0"], batch.is_first).flatten(0, 1).contiguous()
    network = PlainNetwork(actions=6)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, eps=1e-5)
    while True:
        pipe.send(measure.rate_of(lambda: plain_update(network, optimizer, frames, batch), pipe.recv()))


class PlainNetwork(nn.Module):
    def __init__(self, actions: int) -> None:
        super().__init__()
        convolutions = nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1)
        self.body = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU())
        self.policy, self.value = nn.Linear(512, actions), nn.Linear(512, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(frames.float() / 255)
        return self.policy(features), self.value(features)


def plain_update(network: PlainNetwork, optimizer: torch.optim.Optimizer, frames: Tensor, batch: Batch) -> float:
    """V-trace (Espeholt et al. 2018) on frames [(T+1) · B, 4, 84, 84]; returns T · B."""
    logits, values = (out.unflatten(0, (-1, batch.rewards.shape[1])) for out in network(frames))
    log_policy, values = functional.log_softmax(logits[:-1], -1), values.squeeze(-1)
    log_probs = log_policy.gather(-1, batch.actions.long().unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        rhos = (log_probs - batch.extras["behaviour_log_prob"]).exp().clamp(max=1)
        rewards, discounts = batch.rewards.clamp(-1, 1), DISCOUNT * (~batch.terminated).float()
        deltas = rhos * (rewards + discounts * values[1:] - values[:-1])
        error, targets = torch.zeros_like(values[0]), [values[-1]]
        for t in reversed(range(len(deltas))):
            error = deltas[t] + discounts[t] * rhos[t] * error
            targets.insert(0, values[t] + error)
        targets = torch.stack(targets)
        advantages = rhos * (rewards + discounts * targets[1:] - values[:-1])
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    value_loss = 0.5 * (targets[:-1] - values[:-1]).square()
    loss = (-advantages * log_probs + VALUE_COST * value_loss - ENTROPY_COST * entropy).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)
    optimizer.step()
    return float(batch.rewards.numel())


if __name__ == "__main__":
    main()
