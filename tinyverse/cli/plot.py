"""The command `plot`: learning curves of runs. Words on the command line become groups of runs, each of them a curve."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from tinyverse.cli.context import RUNS
from tinyverse.core.errors import SettingsError
from tinyverse.core.text import did_you_mean
from tinyverse.monitoring.plot import plot_curves
from tinyverse.monitoring.progress import Bar
from tinyverse.trainer.run_folder import RunFolder

SEED = re.compile(r"[-_.]s(eed)?[-_]?\d+$")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("records/plot.png"), show_default=True, help="The PNG to write.")  # fmt: skip
@click.option("-x", type=click.Choice(["step", "frames", "seconds", "minutes", "update"]), default="step", show_default=True, help="Over what.")  # fmt: skip
@click.option("-y", default="play/return", show_default=True, metavar="METRIC", help="A name in metrics.jsonl, e.g. eval/return.")  # fmt: skip
@click.option("--title", default="", help="Words above the curves.")
def plot(runs: Sequence[str], out: Path, x: str, y: str, title: str) -> None:
    """Draws learning curves. A RUN is a name in ./runs or a folder; names that differ only in -s1, -s2 … are seeds of one
    curve, its mean with a band from the lowest to the highest. LABEL=RUN,RUN puts runs into one curve by hand.

    Example: tinyverse plot pong-s1 pong-s2 before=old-pong -x minutes
    """
    if out.suffix != ".png":
        raise SettingsError(f"--out {out}: curves are written as a .png. Call it {out.with_suffix('.png')}.")
    groups: dict[str, list[Path]] = {}
    for word in runs:
        label, equals, names = word.rpartition("=")
        for folder in map(folder_of, filter(None, names.split(",")) if equals else [word]):
            members = groups.setdefault(label or SEED.sub("", folder.name), [])
            if folder not in members:
                members.append(folder)
    for label, folders in groups.items():
        _check_alike(label, folders)
    with Bar("drawing the curves"):
        path = plot_curves(groups, out, x=x, y=y, title=title)
    print(f"curve: {path}")


def folder_of(run: str) -> Path:
    """The folder of a run: its name in ./runs, or a path."""
    for folder in (RUNS / run, Path(run)):
        if (folder / "metrics.jsonl").is_file():
            return folder
    there = sorted(file.parent.name for file in RUNS.glob("*/metrics.jsonl"))
    hint = did_you_mean(run, there) or f" In {RUNS}/ there is {', '.join(there) or 'nothing'}."
    raise SettingsError(f"there is no run {run} with a metrics.jsonl in {RUNS}/, and no folder of that name.{hint}")


def _check_alike(label: str, folders: Sequence[Path]) -> None:
    """Seeds of one curve differ in nothing else, as far as their folders say what they were made with."""
    made = [(folder, settings) for folder in folders if (settings := RunFolder(folder).settings().get("settings"))]
    for folder, settings in made[1:]:
        first, others = made[0]
        if different := [name for name in settings if settings[name] != others.get(name)]:
            raise SettingsError(
                f"{first.name} and {folder.name} would be seeds of one curve, {label}, but differ in {', '.join(different)}. "
                f"Plot them apart: a={first.name} b={folder.name}."
            )
