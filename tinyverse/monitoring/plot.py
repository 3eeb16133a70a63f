"""Plot: learning curves from metrics.jsonl to a PNG; several runs of one kind become a mean and a band."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyverse.core.errors import SettingsError
from tinyverse.monitoring.metrics import growing, numbers
from tinyverse.trainer.run_folder import RunFolder

POINTS = 200


def curve(folder: Path, x: str = "step", y: str = "play/return") -> tuple[np.ndarray, np.ndarray]:
    """The points of a run's metrics where both names have a value, x ascending.

    What a trainer logged after its last checkpoint and before a kill is left out (see `metrics.growing`).

    Args:
        x: the name of a metric, or "minutes".
    Raises:
        SettingsError: there are none.
    """
    name, unit = ("seconds", 60.0) if x == "minutes" else (x, 1.0)
    rows = numbers(RunFolder(folder).rows())
    points = growing([row for row in rows if row.get(name) is not None and row.get(y) is not None], name)
    if not points:
        there = sorted({key for row in rows for key, value in row.items() if value is not None})
        known = f"It has {', '.join(there)}." if there else "Train it first."
        if there and y == "play/return" and y not in there:
            known = "No episode has ended in it yet. Train on."
        raise SettingsError(f"{folder} has no curve of {y} over {x}. {known}")
    xs, ys = np.array([(row[name] / unit, row[y]) for row in points], float).T
    return xs, ys


def plot_curves(
    groups: Mapping[str, Sequence[Path]], path: Path, *, x: str = "step", y: str = "play/return", title: str = "",
    levels: Mapping[str, float] = {},
) -> Path:  # fmt: skip
    """Draws one line per group: its mean over runs, with a band from the lowest to the highest run.

    Args:
        groups: label -> run folders, one per seed.
        x: "step" (agent steps), "frames", "seconds", "minutes" or "update".
        levels: horizontal lines to compare with, label -> height.
    Raises:
        SettingsError: a run has no such curve, or the runs of a group have no stretch of x in common.
    """
    from matplotlib.figure import Figure

    drawn = {label: [curve(folder, x, y) for folder in folders] for label, folders in groups.items()}
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="tight")
    axes = figure.subplots()
    for label, curves in drawn.items():
        begin, end = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
        if begin > end:
            raise SettingsError(
                f"the runs of {label} have no stretch of {x} in common; plot them as curves of their own."
            )
        grid = np.linspace(begin, end, POINTS)
        values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
        seeds = f" ({len(curves)} seeds, band: lowest to highest)" if len(curves) > 1 else ""
        marker = "o" if begin == end else ""  # of a single row there is no line
        (line,) = axes.plot(grid, values.mean(0), label=f"{label}{seeds}", marker=marker)
        axes.fill_between(grid, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    for style, (label, height) in zip(itertools.cycle(["--", ":", "-."]), levels.items()):
        axes.axhline(height, color="grey", linewidth=1, linestyle=style, label=f"{label}: {height:g}")
    axes.set_xlabel({"step": "agent steps", "seconds": "seconds"}.get(x, x))
    axes.set_ylabel("mean return, last 100 episodes" if y == "play/return" else y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
