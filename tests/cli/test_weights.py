"""Which weights are judged and exported: the newest there are, wherever they lie, and it is said where."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from tinyverse.cli import eval
from tinyverse.cli.context import Asked
from tinyverse.cli.eval import Seen, weights_for
from tinyverse.core.errors import NoWeights, SettingsError
from tinyverse.core.weights import encode_weights
from tinyverse.database.redis import RedisDatabase
from tinyverse.player.evaluator import Evaluation
from tinyverse.trainer.run_folder import RunFolder

numbers = itertools.count()
META = {"format": "1", "experiment": "tabular", "settings": "{}", "spec": "{}"}


class Run:
    """A run of `tabular` on a server and in a folder, without a trainer; the weights are their version's number."""

    def __init__(self, url: str) -> None:
        self.asked = Asked("tabular", f"judged-{next(numbers)}", redis=url)
        self.database, self.folder = RedisDatabase(url, self.asked.run), RunFolder(self.asked.folder.path)
        self.database.create(META)
        self.database.acquire_lease("h:1:x")

    def publish(self, version):
        blob = encode_weights({"w": np.float32([version])}, version=version, update=version, step=0)
        self.database.put_weights(blob, version, holder="h:1:x", update=version, step=0)

    def save(self, version):
        contents = {"weights": {"w": np.float32([version])}, "version": version, "update": 1, "step": 0, "meta": META}
        return self.folder.save(version, contents)

    def look(self, weights=None, seen=None):
        found = weights_for(self.asked, weights, seen or Seen())
        assert found is None or found.weights["w"] == found.version
        return found and found.version


@pytest.fixture
def run(redis_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Run(redis_url)
    with contextlib.closing(made.database):
        yield made


def said(capsys, run):
    return capsys.readouterr().err.replace(run.asked.run, "RUN").removeprefix("tinyverse: ").strip()


@pytest.mark.parametrize(
    ("published", "saved", "taken", "sentence"),
    [
        (5, 9, 9, "taking version 9, from runs/RUN/; the server has 5 (--weights 5 takes that)"),
        (9, 5, 9, "taking version 9, from the server; runs/RUN/ has 5 (--weights 5 takes that)"),
        (7, 7, 7, ""),
        (None, 7, 7, ""),
        (7, None, 7, ""),
    ],
)
def test_the_newer_version_is_taken(run, capsys, published, saved, taken, sentence):
    if published is not None:
        run.publish(published)
    if saved is not None:
        run.save(saved)
    assert run.look() == taken
    assert said(capsys, run) == sentence


def test_either_is_taken_by_its_number(run, capsys):
    with pytest.raises(NoWeights, match="neither on a server nor in"):
        run.look()
    for version in (5, 6):
        run.publish(version)
    run.save(9)
    assert [run.look(weights) for weights in ("5", "6", "9")] == [5, 6, 9]
    with pytest.raises(SettingsError, match="has no version 7; the newest is 9, and 3 are kept"):
        run.look("7")
    assert said(capsys, run) == ""


def test_who_goes_on_follows_both_and_says_where_they_changed(run, capsys):
    seen = Seen()

    def look():
        if (version := run.look(None, seen)) is not None:
            seen.version = version
        return version, said(capsys, run).partition(";")[0]

    run.publish(1)
    run.save(2)
    assert [look(), look()] == [(2, "taking version 2, from runs/RUN/"), (None, "")]
    run.save(3)
    assert [look(), look()] == [(3, ""), (None, "")]
    run.publish(4)
    assert [look(), look()] == [(4, "taking version 4, from the server"), (None, "")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_a_film_needs_no_screen(run, monkeypatch):
    pytest.importorskip("pygame")
    drawn_by = []
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "")  # is put back at the end
    monkeypatch.delenv("SDL_VIDEODRIVER")

    def evaluate(*_):
        drawn_by.append(os.environ.get("SDL_VIDEODRIVER"))
        return Evaluation([1.0], [1])

    monkeypatch.setattr(eval, "_evaluate", evaluate)
    run.publish(1)
    for render in (True, False):
        eval.do_eval(run.asked, render=render)
    assert drawn_by == [None, "dummy"]
    words = [sys.executable, "-c", "import pygame; pygame.display.init(); pygame.Surface((9, 9)).fill((1, 2, 3))"]
    assert subprocess.run(words, check=True, capture_output=True, timeout=60).stderr == b""


def test_what_a_single_evaluation_found_is_kept_for_the_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr(eval, "_evaluate", lambda *_: Evaluation([1.0, 3.0], [5, 7]))
    run.publish(5)
    eval.do_eval(run.asked, games=2)  # without a folder there is nowhere to keep it
    file = run.save(6)
    for weights in (None, "5", str(file)):
        eval.do_eval(run.asked, games=2, weights=weights)
    kept = [(row["version"], row["eval/return"], row["eval/games"]) for row in run.folder.evaluations()]
    assert kept == [(6, 2.0, 2), (5, 2.0, 2)]  # a file's may be another run's
    assert run.folder.metrics() == []


def test_a_damaged_checkpoint_is_passed_over(run, caplog):
    run.publish(5)
    run.save(9)
    run.save(10).write_bytes(b"half")
    assert run.look() == 9
    assert "cannot be read" in caplog.text
