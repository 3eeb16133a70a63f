"""Demo: `make demo` runs this. It trains Pong on this machine with a server, 2 players and a trainer.

It makes a video and a curve after 2 minutes, and again when time is up or Ctrl-C is pressed. A second `make demo` continues
where the first ended. MINUTES=5 make demo is shorter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tinyverse.core.errors import TinyverseError
from tinyverse.core.text import counted
from tinyverse.monitoring.plot import plot_curves

NAME = "pong-demo"
FIRST_MINUTES, ALL_MINUTES = 2.0, 15.0


def main() -> int:
    minutes = float(os.environ.get("MINUTES", ALL_MINUTES))
    first = min(FIRST_MINUTES, minutes)
    _say(
        f"Pong with 2 players and a trainer for {counted(minutes, 'minute')}; Ctrl-C ends it sooner and loses nothing."
    )
    code = _tinyverse("run", "--players", "2", "--minutes", f"{first:g}")
    _show(code)
    if code == 0 and minutes > first:
        _say("going on; the return starts near -20.5, and the best possible is 21.")
        code = _tinyverse("run", "--players", "2", "--minutes", f"{minutes - first:g}")
        _show(code)
    _say("next: `make demo` again goes on learning; `.venv/bin/tinyverse atari.py --help` says what else there is.")
    return code


def _show(code: int) -> None:
    if code == 0:
        _say("a whole game with these weights:")
        _tinyverse("eval", "-n", "1")
        try:
            path = plot_curves(
                {"Pong": [Path("runs") / NAME]}, Path("records") / f"{NAME}.png", title="Pong, 2 players and a trainer"
            )
            print(f"curve: {path}", flush=True)
        except TinyverseError as error:
            print(f"no curve yet: {error}", flush=True)


def _tinyverse(*words: str) -> int:
    process = subprocess.Popen([sys.executable, "-m", "tinyverse", "atari", *words, "--name", NAME])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal sends Ctrl-C to the child too, which saves and ends
            continue


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
