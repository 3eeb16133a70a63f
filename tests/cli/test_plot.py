"""Curves of runs: which runs become one, what is drawn of them, and what is said where there is nothing to draw."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinyverse.cli import main as cli
from tinyverse.cli import plot as plotting
from tinyverse.core.errors import SettingsError
from tinyverse.monitoring.plot import curve, plot_curves


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_run(name, rows, settings=None):
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if settings is not None:
        (folder / "settings.json").write_text(json.dumps({"experiment": "environment", "settings": settings}))
    return folder


def rising(slope, steps=10):
    return [{"step": 100 * n, "seconds": 30.0 * n, "play/return": slope * n} for n in range(steps)]


def drawn(monkeypatch):
    """What is handed to the drawing, instead of a picture."""
    calls = []
    monkeypatch.setattr(plotting, "plot_curves", lambda groups, out, **options: calls.append((groups, options)) or out)
    return calls


def plot(*words):
    """The command, whose errors are raised."""
    plotting.plot.main([*words, "--out", "a.png"], standalone_mode=False)


def test_names_that_differ_in_the_seed_are_one_curve(monkeypatch):
    names = ["pong-s1", "pong-s2", "pong-seed3", "pong_s_4", "atlantis-2", "pongs"]
    folders = {name: a_run(name, rising(1)) for name in names}
    calls = drawn(monkeypatch)
    plot(*names, "pong-s1", "runs/pong-s2", "-x", "minutes")
    ((groups, options),) = calls
    assert groups == {
        "pong": [folders[name] for name in names[:4]], "atlantis-2": [folders["atlantis-2"]], "pongs": [folders["pongs"]]
    }  # fmt: skip
    assert options["x"] == "minutes"


def test_a_label_puts_runs_together(monkeypatch):
    one, two, three = (a_run(name, rising(1)) for name in ("one", "two-s1", "three"))
    calls = drawn(monkeypatch)
    plot("new method=one,two-s1", "three")
    assert calls[0][0] == {"new method": [one, two], "three": [three]}


def test_runs_with_other_settings_are_no_seeds_of_each_other():
    a_run("environment-s1", rising(1), {"learning_rate": 1e-3, "depth": 2})
    a_run("environment-s2", rising(1), {"learning_rate": 1e-4, "depth": 2})
    with pytest.raises(
        SettingsError,
        match=r"environment-s1 and environment-s2 .* differ in learning_rate\. .*a=environment-s1 b=environment-s2",
    ):
        plot("environment-s1", "environment-s2")
    plot("a=environment-s1", "b=environment-s2")
    assert Path("a.png").exists()


def test_minutes_are_seconds_by_sixty():
    folder = a_run("environment", rising(2))
    np.testing.assert_allclose(curve(folder, "minutes"), [np.arange(10) / 2, 2.0 * np.arange(10)])


def test_what_a_crash_undid_is_left_out():
    rows = [{"step": s, "play/return": v} for s, v in [(1, 0.0), (2, 1.0), (3, 66.0), (2, 2.0), (3, 3.0), (4, None)]]
    np.testing.assert_array_equal(curve(a_run("environment", rows)), [[1, 2, 2, 3], [0, 1, 2, 3]])


def test_the_picture_shows_mean_and_band(monkeypatch):
    from matplotlib.axes import Axes

    lines, bands = [], []
    draw, fill = Axes.plot, Axes.fill_between
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **more: lines.append((x, y)) or draw(self, x, y, **more))
    monkeypatch.setattr(
        Axes, "fill_between", lambda self, x, a, b, **more: bands.append((a, b)) or fill(self, x, a, b, **more)
    )
    folders = [a_run("environment-s1", rising(1)), a_run("environment-s2", rising(3, steps=8))]
    path = plot_curves({"environment": folders}, Path("deep/down/a.png"), levels={"human": 9.0})
    (xs, mean), (low, high) = lines[0], bands[0]
    assert (xs[0], xs[-1]) == (0, 700)  # where all runs have been
    np.testing.assert_allclose(mean, 2 * xs / 100)
    np.testing.assert_allclose([low, high], [xs / 100, 3 * xs / 100])
    assert cv2.imread(str(path)).shape[:2] == (504, 840)


def test_a_single_row_is_a_point_that_is_seen(monkeypatch):
    from matplotlib.axes import Axes

    markers, draw = [], Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *given, **more: markers.append(more["marker"]) or draw(self, *given, **more)
    )
    folders = [a_run("young", rising(1, steps=1)), a_run("older", rising(1, steps=2))]
    for folder in folders:
        plot_curves({"a": [folder]}, Path("a.png"))
    assert markers == ["o", ""]


def test_runs_that_never_met_are_no_curve():
    early, late = a_run("a-s1", rising(1)), a_run("a-s2", [{"step": 9999, "play/return": 1.0}])
    with pytest.raises(SettingsError, match="no stretch of step in common"):
        plot_curves({"a": [early, late]}, Path("a.png"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["enviroment"], "there is no run enviroment with a metrics.jsonl in runs/, and no folder of that name. Did you mean environment?"),
        (["xyz"], "In runs/ there is environment."),
        (["environment", "-y", "eval/return"], "environment has no curve of eval/return over step. It has play/return, seconds, step."),
        (["environment", "--out", "a.svg"], "--out a.svg: curves are written as a .png. Call it a.png."),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(capsys, words, sentence):
    a_run("environment", rising(1))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", *words])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and len(said.splitlines()) == 1


def test_before_an_episode_has_ended_there_is_no_curve():
    young = a_run("young", [{"step": 1, "seconds": 1.0, "play/return": None}])
    with pytest.raises(SettingsError, match=r"young has no curve .* No episode has ended in it yet\. Train on\.$"):
        curve(young)


def test_the_command_draws(capsys):
    a_run("environment-s1", rising(1))
    a_run("environment-s2", rising(2))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "environment-s1", "environment-s2", "-x", "minutes", "--title", "two"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "curve: records/plot.png\n"
    assert cv2.imread("records/plot.png") is not None
