"""Sample Factory's APPO on Pong, asynchronous and with one epoch, measured by its own reports. Prints one JSON line.

    python sample_factory.py --seconds 20

2 workers with 16 environments each, rollouts of 20 steps, batches of 640: every step is learned from once, as with the others.
It does not end by itself on a clock, so its process is ended; its log counts frames, of which a step has 4.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Mark = tuple[float, int]

FRAME_SKIP, WARM = 4, 2  # frames of a step; reports (one in 5 seconds) that do not count
TIME = "%Y-%m-%d %H:%M:%S"
SETTINGS = {
    "env": "atari_pong", "algo": "APPO", "device": "cpu", "async_rl": True, "num_workers": 2,
    "num_envs_per_worker": 16, "worker_num_splits": 2, "num_epochs": 1, "num_batches_per_epoch": 1, "batch_size": 640,
    "rollout": 20, "with_vtrace": False, "decorrelate_experience_max_seconds": 0, "train_for_env_steps": 10**9,
    "save_every_sec": 10**4, "with_wandb": False, "restart_behavior": "overwrite",
}  # fmt: skip


def game(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> Any:
    import ale_py  # noqa: F401  (makes the environments known)
    from sf_examples.atari.atari_utils import make_atari_env

    return make_atari_env(name, cfg, env_config, render_mode)


def train(folder: str) -> int:
    """The training itself, in a process of its own."""
    from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
    from sample_factory.envs.env_utils import register_env
    from sample_factory.train import run_rl
    from sf_examples.atari.atari_params import atari_override_defaults

    register_env(str(SETTINGS["env"]), game)
    words = [f"--{name}={value}" for name, value in SETTINGS.items()] + [f"--train_dir={folder}", "--experiment=pong"]
    parser, _ = parse_sf_args(argv=words)
    atari_override_defaults(str(SETTINGS["env"]), parser)
    return int(run_rl(parse_full_cfg(parser, words)))


def measured(seconds: float) -> float:
    """Frames per second over so many seconds, once all of its processes are at work."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        words = [sys.executable, "-P", __file__, "--folder", folder]  # -P: this file has the name of the package
        with log.open("w") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            (began, first), (ended, last) = _wait(process, log, seconds)
        finally:
            _end(process)
    return (last - first) / (ended - began)


def _wait(process: subprocess.Popen[bytes], log: Path, seconds: float) -> tuple[Mark, Mark]:
    gives_up = time.monotonic() + seconds + 90
    while process.poll() is None and time.monotonic() < gives_up:
        steady = [mark for mark in marks(log.read_text(errors="replace")) if mark[1] > 0][WARM:]
        if steady and steady[-1][0] - steady[0][0] >= seconds:
            return steady[0], steady[-1]
        time.sleep(0.5)
    sys.exit(f"it logged no speed:\n{log.read_text(errors='replace')[-2000:]}")


def marks(log: str) -> list[Mark]:
    """(seconds, frames learned from so far) of each report in the log."""
    found = re.findall(r"\[([-0-9]+ [:0-9]+),(\d+)\].*Fps is.*Total num frames: (\d+)", log)
    return [(time.mktime(time.strptime(at, TIME)) + int(ms) / 1000, int(frames)) for at, ms, frames in found]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to finish, then ends the whole group, which is its own."""
    with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.send_signal(signal.SIGINT)
        process.wait(8.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--folder", help="train there, until ended")
    options = parser.parse_args()
    if options.folder:
        sys.exit(train(options.folder))
    print(json.dumps({"steps_per_second": measured(options.seconds) / FRAME_SKIP}))


if __name__ == "__main__":
    main()
