"""Metrics: rows and numbers in words."""

from __future__ import annotations

import pytest

from tinyverse.monitoring import metrics


def test_rows_of_trainers_and_of_evaluations():
    rows = [{"step": 1}, {"step": 2, "eval/return": 5.0}, {"step": 3}]
    assert metrics.split(rows) == ([rows[0], rows[2]], [rows[1]])


def test_steps_that_were_made_again_are_left_out():
    steps = [0, 10, 20, 30, 20, 25, 40]
    assert [row["step"] for row in metrics.growing([{"step": step} for step in steps])] == [0, 10, 20, 20, 25, 40]
    assert metrics.growing([]) == []


def test_a_sparkline_takes_any_numbers():
    assert metrics.sparkline([3.0] * 5) == "▁" * 5
    assert metrics.sparkline([float(number) for number in range(1000)], 8) == "▁▂▃▄▅▆▇█"
    assert len(metrics.sparkline([-1.0, 5.0])) == 2


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5e12, "5000.0 GB")]
)
def test_sizes(number, words):
    assert metrics.size(number) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90_000, "25h00m")]
)
def test_durations(number, words):
    assert metrics.duration(number) == words
