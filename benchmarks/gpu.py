"""One CUDA device as a trainer: updates of V-trace from a replay in its memory, and a whole run with all cores playing.

    python benchmarks/gpu.py [--json] [--smoke] [--repeats N]

Updates: Nature's network and IMPALA's residual one, over 4 frames, bfloat16 autocast, 20 steps in batches of 32 and 256;
the unit is steps learned from per second. Observations are noise.
ours: sample from `Replay(device="cuda")` and learn, while a thread decodes 2,000 new sessions a second from bytes and
    adds them; that is what the whole run below needs (150,000 frames/s are 37,500 steps/s, 1,875 sessions/s).
limit: the same update again and again on one batch that lies on the device; nobody feeds.
plain: in rows of torch.compile(mode="reduce-overhead"), ours without it.

The whole run: `tinyverse atari run --device cuda` with two cores less players than there are cores, in frames per second
(4 a step). target: 150,000 on 16 cores, in proportion on others.

Without a CUDA device it says so and ends well; with --smoke it then shows on the CPU, with tiny sizes, that it works.
"""
# ruff: noqa: E402

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import measure

from tinyverse import machine

if __name__ == "__main__":
    machine.prepare()

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from tinyverse.algorithms import VTrace
from tinyverse.batch import Batch
from tinyverse.envs.atari import FRAME_SKIP
from tinyverse.networks import ModularNetwork, NatureConv, Window
from tinyverse.redis_server import private_server
from tinyverse.replay import Flow, Replay
from tinyverse.run import RunFolder
from tinyverse.samplers import Uniform
from tinyverse.session import Session, SessionSpec
from tinyverse.torch_agent import TorchAgent

STEPS, FED, FRAMES_PER_CORE = 20, 2000, 150_000 / 16  # steps of a session, sessions a second, frames a second
SCREEN, BUTTONS = spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(6)


def main() -> None:
    with measure.session("gpu", __doc__) as bench:
        if not torch.cuda.is_available() and not bench.smoke:
            where = sys.stderr if bench.quiet else sys.stdout
            print("There is no CUDA device here, so gpu.py has measured nothing; --smoke tries it on the CPU.", file=where)
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)
        for name, trunk in (("Nature", NatureConv), ("IMPALA", ResNet)):
            for batch in (2,) if bench.smoke else (32, 256):
                measure_updates(bench, name, trunk, batch, device)
        measure_run(bench, device)


def measure_updates(bench: measure.Bench, name: str, trunk: type[nn.Module], batch: int, device: str) -> None:
    replay, blobs = filled_replay(batch, device)
    resident = replay.sample()
    plain, compiled = (Updates(new_learner(trunk, device), replay, blobs, bench) for _ in range(2))
    mode = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    compiled.learner.loss = torch.compile(compiled.learner.loss, **mode)
    what = f"{name}'s network, {STEPS} x {batch}, bfloat16, {device}"
    bench.compare(
        what, {"ours": plain.live, "limit": lambda: plain.resident(resident)}, at_least={"limit": 0.95}
    ).note = plain.note()
    bench.compare(
        f"{what}, torch.compile",
        {"ours": compiled.live, "limit": lambda: compiled.resident(resident), "plain": plain.live},
        at_least={"limit": 0.95},
    )


class Updates:
    """The two ways of one learner."""

    def __init__(self, learner: VTrace, replay: Replay, blobs: list[bytes], bench: measure.Bench) -> None:
        self.learner, self.replay, self.blobs = learner, replay, blobs
        self.seconds, self.at_once = bench.seconds(3.0), 1 if bench.smoke else 10
        self.fed: list[float] = []  # sessions a second
