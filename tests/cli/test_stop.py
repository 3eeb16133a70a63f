"""Workers are asked to leave."""

from __future__ import annotations

from tests.helpers.command_line import Tinyverse, created


def test_stop_of_nobody(run: Tinyverse) -> None:
    created(run)
    assert "0 of 0 workers" in run("stop").out
