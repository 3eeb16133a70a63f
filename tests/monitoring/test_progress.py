"""Progress: plain lines in a log, live on a terminal, nothing of what is quick, nothing where it is to be quiet."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest

from tinyverse.cli import main as cli
from tinyverse.monitoring import progress
from tinyverse.monitoring.progress import Bar, Progress, Share


class Terminal(io.StringIO):
    def isatty(self):
        return True


def a_terminal(monkeypatch):
    """Stderr is one from here on."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


@pytest.fixture
def slow(monkeypatch):
    """Whatever takes more than a moment takes long."""
    monkeypatch.setattr(progress, "QUICK", 0.0)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)


def until_it_says(what, capsys, seconds=60.0):
    """All of stderr, once `what` is in it."""
    err, ends = "", time.monotonic() + seconds
    while what not in err:
        assert time.monotonic() < ends, err
        time.sleep(0.01)
        err += capsys.readouterr().err
    return err


def test_elsewhere_than_on_a_terminal_progress_is_plain_lines(capsys):
    with Progress(lambda: "update 7 [x]", seconds=1000) as shown:
        for _ in range(5):
            shown.turn()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2  # the first turn, and the end
    assert all(line.endswith(" update 7 [x]") for line in lines)
    assert "\x1b" not in err


def test_quiet_is_nothing(capsys):
    with Progress(lambda: "update 7", seconds=0, quiet=True) as shown:
        shown.turn()
        shown.show()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_live(monkeypatch):
    terminal = a_terminal(monkeypatch)
    with Progress(lambda: "update 7") as shown:
        shown.turn()
    assert "update 7" in terminal.getvalue()
    assert "\x1b" in terminal.getvalue()


def test_below_it_a_terminal_shows_the_share_and_a_log_does_not(monkeypatch, capsys):
    terminal = a_terminal(monkeypatch)
    with Progress(lambda: "update 7", share=lambda: Share("updates", 7, 1000)):
        pass
    assert "updates: 7 of 1,000" in terminal.getvalue() and "━" in terminal.getvalue()
    monkeypatch.undo()
    with Progress(lambda: "update 7", share=lambda: Share("updates", 7, 1000)):
        pass
    assert "updates" not in capsys.readouterr().err


def test_a_bar_in_a_log_is_lines_with_the_time_that_is_left(slow, capsys):
    bar = Bar("environments", 4)
    bar.count(2)
    with bar:
        err = until_it_says("environments: 2 of 4, ", capsys)
    assert err.strip().endswith("s left") and "\x1b" not in err and len(err.splitlines()) == 1
    assert capsys.readouterr() == ("", "")  # nothing stays but the line


def test_a_bar_counts_what_passes_or_refreshes_its_share(slow, capsys):
    bar = Bar("frames", 3)
    assert list(bar.over("abc")) == ["a", "b", "c"] and bar.share == Share("frames", 3, 3)
    with Bar("", refresh=lambda: Share("waits for another trainer")):
        until_it_says("waits for another trainer", capsys)


def test_a_bar_on_a_terminal_is_gone_at_the_end(slow, monkeypatch):
    terminal = a_terminal(monkeypatch)
    with Bar("environments", 4) as bar:
        bar.count()
        ends = time.monotonic() + 60
        while "environments: 1 of 4" not in terminal.getvalue():
            assert time.monotonic() < ends
            time.sleep(0.01)
    assert terminal.getvalue().endswith("\x1b[2K") or "\x1b[2K" in terminal.getvalue().rsplit("environments", 1)[1]


@pytest.mark.parametrize("options", [{}, {"quiet": True}])
def test_what_is_quick_or_quiet_shows_nothing(capsys, monkeypatch, options):
    monkeypatch.setattr(progress, "QUICK", 0.0 if options else 60.0)
    with Bar("environments", 4, **options) as bar:
        bar.count()
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_drawing_says_that_it_goes_on(slow, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "play/return": 2.0}\n{"step": 2, "play/return": 3.0}\n')
    with pytest.raises(SystemExit):
        cli.main(["plot", str(tmp_path)])
    out, err = capsys.readouterr()
    assert out == "curve: records/plot.png\n" and err.strip().endswith(" drawing the curves")


def test_an_evaluation_says_how_far_it_is_but_not_with_json(slow, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(tmp_path / "s"))
    for name in ("TINYVERSE_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    def said(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["tabular", *words])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out, err

    said("local", "-n", "2", "-q")
    assert " episodes" in said("eval", "-n", "300", "--no-video")[1]
    out, err = said("eval", "-n", "300", "--no-video", "--json")
    assert err == "" and len(json.loads(out)["returns"]) == 300
