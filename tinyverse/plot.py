"""Plot: learning curves from metrics.jsonl to a PNG; several runs of one kind become a mean and a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tinyverse.errors import SettingsError
from tinyverse.run_folder import RunFolder

POINTS = 200


def curve(folder: Path, x: str = "step", y: str = "play/return") -> tuple[np.ndarray, np.ndarray]:
    """The points of a run's metrics where both names have a value.

    Raises:
        SettingsError: there are none.
    """
    rows = [row for row in RunFolder(folder).metrics() if row.get(x) is not None and row.get(y) is not None]
    if not rows:
        raise SettingsError(f"{folder} has no curve of {y} yet; train it first.")
    return np.array([row[x] for row in rows], float), np.array([row[y] for row in rows], float)


def plot_curves(
    groups: Mapping[str, Sequence[Path]], path: Path, *, x: str = "step", y: str = "play/return", title: str = ""
) -> Path:
    """Draws one line per group: its mean over runs, with a band from the lowest to the highest run.

    Args:
        groups: label -> run folders, one per seed.
        x: "step" (agent steps), "frames", "seconds" or "update".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120)
    for label, folders in groups.items():
        curves = [curve(folder, x, y) for folder in folders]
        grid = np.linspace(max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves), POINTS)
        values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
        seeds = f" ({len(folders)} seeds, band: lowest to highest)" if len(folders) > 1 else ""
        (line,) = axes.plot(grid, values.mean(0), label=f"{label}{seeds}")
        axes.fill_between(grid, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel({"step": "agent steps", "seconds": "seconds"}.get(x, x))
    axes.set_ylabel("mean return, last 100 episodes" if y == "play/return" else y)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
    return path
