"""CartPole in one thread: steps per second, and how long until the mean return of the last 100 episodes is 475.

    python benchmarks/cartpole.py [--json] [--smoke] [--repeats SEEDS]      about 3 minutes

Both clocks start with the first step played, not with the imports. Of each way the same runs give steps and seconds.

ours      `tinyverse local` with the settings of SB3 (rl-baselines3-zoo's PPO: 8 games, 20 epochs over 256 steps). One
          network has both heads here, SB3 has two networks; ours steps Gymnasium's own vector CartPole
limit     1 / (1 / player + 1 / trainer): both parts alone, without anything between them
own       `tinyverse local` with settings of our own
SB3       Stable-Baselines3's PPO; left out where peers.sh has not made its environment
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
from end_to_end import Alone, torch

CARTPOLE = measure.HERE / "experiments" / "cartpole.py"
UPDATES = {"same": 390, "own": 400}  # after which a run counts as one that never solves it


def local(settings: str, seed: int, updates: int) -> dict[str, Any]:
    """What the stop watch of a run of `tinyverse local` saw."""
    words = [sys.executable, "-m", "tinyverse", str(CARTPOLE), "local", "--quiet", "-n", str(updates)]
    with tempfile.TemporaryDirectory(prefix="tv") as folder:
        subprocess.run([*words, "-o", f"settings={settings}", "--seed", str(seed)], cwd=folder, check=True)
        return json.loads(Path(folder, "result.json").read_text())


class Runs:
    """One way's runs, each with a seed of its own."""

    def __init__(self, run: Any) -> None:
        self.run, self.results = run, list[dict[str, Any]]()

    def __call__(self) -> float:
        self.results.append(self.run(len(self.results) + 1))
        return self.results[-1]["steps_per_second"]

    def solved_per_minute(self) -> list[float]:
        """0 for a run that never solved it."""
        return [60 / (result["seconds"] or math.inf) for result in self.results]


def main() -> None:
    with measure.session("cartpole", __doc__ or "") as bench:
        torch.set_num_threads(1)
        updates = dict.fromkeys(UPDATES, 4) if bench.smoke else UPDATES
        ways = {
            "ours": Runs(lambda seed: local("same", seed, updates["same"])),
            "own": Runs(lambda seed: local("own", seed, updates["own"])),
        }
        if (measure.PEERS / "sb3").exists() and not bench.smoke:
            ways["SB3"] = Runs(lambda seed: measure.peer("sb3", "sb3.py", "cartpole", str(seed)))
        alone = Alone(CARTPOLE)
        limit = {"limit": lambda: alone.limit(1, bench.seconds(2.0))}
        bench.compare("CartPole, PPO of SB3's settings", {**ways, **limit}, at_least={"SB3": 1.8}, warm=False)
        if not bench.smoke:
            solved = {name: runs.solved_per_minute() for name, runs in ways.items()}
            wanted = {"SB3": 1 / 0.6}
            bench.keep(measure.Row("CartPole, return 475 reached", "times a minute", solved, wanted))


if __name__ == "__main__":
    main()
