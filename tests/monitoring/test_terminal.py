"""Terminal: 80 columns hold the panel, and no word of a worker breaks it."""

from __future__ import annotations

import pytest

from tests.helpers.terminal import shown
from tinyverse.database.base import Worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import status, terminal


def test_a_run_that_nobody_created_is_one_sentence():
    facts = status.gather(MemoryDatabase(), "environment")
    assert terminal.headline(facts) == "run environment: no trainer has created it yet"
    assert "nobody is at work" in shown(terminal.panel(facts))


def test_the_panel_fits_80_columns_and_takes_words_as_they_are(database):
    text = shown(terminal.panel(status.gather(database, "environment")), width=80)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("counting", "return 2.50", "version 3", "4 of 50", "reuse 1.50", "1,234", "trainer"):
        assert word in text
    assert "[bold]KeyError[/]" in shown(terminal.panel(status.gather(database, "environment")), width=200)


def test_what_was_lost_is_shown(database):
    database.beat(Worker("play-3", "play", "host", 19, dropped=1200, faults=2))
    text = shown(terminal.panel(status.gather(database, "environment")), width=200)
    assert "1,200 sessions dropped; 2 environments rebuilt" in text
    assert text.count("dropped") == text.count("rebuilt") == 1


@pytest.mark.parametrize(
    "nasty", ["[/]", "[red", "[/red]", "\\[x]", "a\\", "[link=x]y", "\x1b[31m", "日本語", "x" * 500]
)
def test_no_word_of_a_worker_breaks_the_panel(nasty):
    database = MemoryDatabase()
    database.beat(Worker("play-1", nasty, nasty, waits_for=nasty, error=nasty))
    assert shown(terminal.panel(status.gather(database, nasty)))


def test_a_silent_worker_shows(database):
    facts = status.gather(database, "environment")
    facts["workers"][0]["seen"] = 9.0
    assert "[silent for 9 s]" in shown(terminal.panel(facts), width=200)
