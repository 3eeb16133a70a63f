"""One CUDA device as a trainer: updates of V-trace from a replay in its memory, and a whole run with all cores playing.

    python benchmarks/gpu.py [--json] [--smoke] [--repeats N]

Updates: Nature's network and IMPALA's residual one, over 4 frames, bfloat16 autocast, 20 steps in batches of 32 and 256;
the unit is steps learned from per second.
ours: sample from `Replay(device="cuda")` and learn, while a thread decodes 2,000 new sessions a second from bytes and
    adds them; that is what the whole run below needs (150,000 frames/s are 37,500 steps/s, 1,875 sessions/s).
limit: the same update again and again on one batch that lies on the device; nobody feeds.
plain: in rows of torch.compile(mode="reduce-overhead"), ours without it.

The whole run: `tinyverse atari run --device cuda` with two cores less players than there are cores, in frames per second
(4 a step). target: 150,000 on 16 cores, in proportion on others.

Without a CUDA device it says so and ends well; with --smoke it then shows on the CPU, with tiny sizes, that it works.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import measure

from tinyverse.core import system
from tinyverse.experiment.experiment import session_spec

if __name__ == "__main__":
    system.prepare()

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.core.batch import Batch
from tinyverse.core.session import Session, SessionSpec
from tinyverse.database.server import private_server
from tinyverse.networks import ImpalaResNet, ModularNetwork, NatureConv, Window
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Uniform
from tinyverse.trainer.run_folder import RunFolder

STEPS, FED, FRAMES_PER_CORE = 20, 2000, 150_000 / 16  # steps of a session, sessions a second, frames a second
SCREEN, BUTTONS = spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(6)


def main() -> None:
    with measure.session("gpu", __doc__) as bench:
        if not torch.cuda.is_available() and not bench.smoke:
            said = "There is no CUDA device here, so nothing was measured; --smoke tries this script on the CPU."
            print(said, file=sys.stderr if bench.quiet else sys.stdout)
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)
        networks = [("IMPALA", ImpalaResNet)] if bench.smoke else [("Nature", NatureConv), ("IMPALA", ImpalaResNet)]
        for (name, trunk), batch in itertools.product(networks, (1,) if bench.smoke else (32, 256)):
            measure_updates(bench, name, trunk, batch, device)
        measure_run(bench, device)


def measure_updates(bench: measure.Bench, name: str, trunk: type[nn.Module], batch: int, device: str) -> None:
    replay, blobs = filled_replay(batch, device)
    plain, compiled = (Updates(new_learner(trunk, device), replay, blobs, bench) for _ in range(2))
    kinds = [("", plain, {})]
    if device == "cuda":  # seconds of work on a CPU, for nothing
        compiled.learner.loss = torch.compile(compiled.learner.loss, mode="reduce-overhead")  # type: ignore[method-assign]
        kinds.append((", torch.compile", compiled, {"plain": plain.live}))
    for words, kind, others in kinds:
        bench.compare(
            f"{name}'s network, {STEPS} x {batch}, bfloat16 on {device}{words}",
            {"ours": kind.live, "limit": kind.resident, **others}, at_least={"limit": 0.95}, warm=not bench.smoke,
            note=f"{FED:,} sessions/s are fed meanwhile, or fewer where decoding is slower.",
        )  # fmt: skip


class Updates:
    """Updates of one learner, from the replay while it is fed, or from one batch of it."""

    def __init__(self, learner: VTrace, replay: Replay, blobs: list[bytes], bench: measure.Bench) -> None:
        self.learner, self.replay, self.blobs = learner, replay, blobs
        self.batch: Batch = replay.sample()
        self.seconds, self.at_once = bench.seconds(3.0), 1 if bench.smoke else 10

    def live(self) -> float:
        with feeding(self.replay, self.blobs):
            return measure.rate_of(lambda: self.learn(self.replay.sample), self.seconds)

    def resident(self) -> float:
        return measure.rate_of(lambda: self.learn(lambda: self.batch), self.seconds)

    def learn(self, sample: Callable[[], Batch]) -> float:
        """Some updates, and then a wait for the device; returns the steps learned from."""
        device = self.learner.device.type
        for _ in range(self.at_once):
            torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device, torch.bfloat16):
                self.learner.train_step(sample())
        if device == "cuda":
            torch.cuda.synchronize()
        return float(self.at_once * self.batch.rewards.numel())


@contextlib.contextmanager
def feeding(replay: Replay, blobs: list[bytes]) -> Iterator[None]:
    """A thread that adds sessions at its pace while this lasts, as a trainer's Feeder does."""
    done = threading.Event()

    def feed() -> None:
        began = time.monotonic()
        for number in itertools.count():
            if done.wait(max(0.0, began + number / FED - time.monotonic())):
                return
            replay.add(replay.spec.decode(blobs[number % len(blobs)]))

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def new_learner(trunk: type[nn.Module], device: str) -> VTrace:
    torch.manual_seed(0)
    agent = TorchAgent(ModularNetwork(SCREEN, BUTTONS, trunk=Window(4, trunk())), device)
    return VTrace(agent, optimizer="adam", learning_rate=1e-5)


def filled_replay(batch: int, device: str) -> tuple[Replay, list[bytes]]:
    """A replay on the device full of noise, and 64 sessions of it as they come from a database."""
    agent = TorchAgent(ModularNetwork(SCREEN, BUTTONS, trunk=Window(4, NatureConv())))
    spec = session_spec(SCREEN, BUTTONS, agent, STEPS)
    size = 4 * batch
    replay = Replay(spec, ReplayConfig(batch_size=batch, buffer_size=size, reuse=None), Uniform(), device=device)
    blobs = [noise(spec, number).encode() for number in range(min(size, 64))]
    for number in range(size):
        replay.add(spec.decode(blobs[number % len(blobs)]))
    return replay, blobs


def noise(spec: SessionSpec, number: int) -> Session:
    """A session whose frames are noise in one corner: it shrinks on the wire about as Atari's frames do."""
    random, arrays = np.random.default_rng(number), {}
    for name, (shape, dtype) in spec.fields.items():
        arrays[name] = np.zeros(shape, dtype)
    arrays["observations"][:, :8, :8] = random.integers(0, 256, (STEPS + 1, 8, 8))
    arrays["actions"][:] = random.integers(0, int(BUTTONS.n), STEPS)
    arrays["alive"][:] = True
    arrays["extras.behaviour_log_prob"][:] = -np.log(float(BUTTONS.n))
    return Session(arrays, {"player": "bench", "sequence": str(number), "version": "0", "update": "0"})


def measure_run(bench: measure.Bench, device: str) -> None:
    """The whole of it once: frames per second from the second half of the run's metrics."""
    cores, minutes = system.cores(), 1.5
    players = max(1, cores - 2)
    size = ["--num-envs", "64", "-b", "128", "--buffer-size", "1024", "-s", "5", "--minutes", str(minutes)]
    if bench.smoke:
        players, size = 1, ["--num-envs", "4", "-b", "2", "--buffer-size", "8", "-n", "2", "-o", "unroll_length=8"]
    with private_server() as server, tempfile.TemporaryDirectory() as folder:
        words = [
            "atari",
            "run",
            "--redis",
            server.url,
            "--name",
            "bench",
            "--device",
            device,
            "--players",
            str(players),
        ]
        command = [sys.executable, "-m", "tinyverse", *words, "--threads", "1", "--reuse", "1", "-q", *size]
        subprocess.run(command, cwd=folder, check=True, timeout=60 * minutes + 120)
        rows = RunFolder(Path(folder) / "runs" / "bench").rows()
    first, last = rows[len(rows) // 2 - 1 if len(rows) > 1 else 0], rows[-1]
    passed = last["seconds"] - (first["seconds"] if first is not last else 0.0)
    frames = last["frames"] - (first["frames"] if first is not last else 0)
    rates = {"ours": [frames / passed], "target": [FRAMES_PER_CORE * cores]}
    what = f"Pong, the whole run, {players} players, learning on {device}"
    bench.keep(measure.Row(what, "frames/s", rates, {"target": 1.0}))


if __name__ == "__main__":
    main()
