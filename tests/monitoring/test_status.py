"""Monitor: scripts may rely on the keys, a terminal of 80 columns holds the panel, and the logs can be read again."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tests.helpers.people import a_spec
from tinyverse.core.errors import DatabaseLost
from tinyverse.core.run_config import run_config
from tinyverse.database.base import Worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import status
from tinyverse.trainer.run_folder import RunFolder

KEYS = {
    "run", "experiment", "settings", "epoch", "version", "update", "step", "inserted", "delivered", "sessions", "bytes",
    "capacity", "reuse", "mean_return", "episodes", "workers", "counters", "metrics", "evaluation",
    "human_sessions", "human_return", "errors", "reuse_wanted", "compression", "steps_per_second", "frames_per_second",
    "sessions_per_second", "curve", "waits", "bottleneck",
}  # fmt: skip
WORKER_KEYS = {
    "id", "role", "host", "pid", "games", "steps", "steps_per_second", "version", "lag", "sessions", "dropped", "faults", "uptime",
    "waits_for", "waits_seconds", "error", "seen", "frame_skip", "stages",
}  # fmt: skip


@pytest.fixture
def database():
    """A run in full swing."""
    database = MemoryDatabase()
    database.create(run_config("counting", {"learning_rate": 1e-3}, a_spec()))
    database.acquire_lease("host:1:x")
    database.put_weights(b"weights", 3, holder="host:1:x", update=30, step=4000)
    database.report(delivered=6, capacity=50)
    database.append([b"12345"] * 4, episodes=[{"return": 1.0, "length": 2}, {"return": 4.0, "length": 2}])
    database.beat(
        Worker("play-2", "play", "host", 17, steps_per_second=1234.5, waits_for="a trainer", waits_seconds=61)
    )
    database.beat(Worker("play-1", "play", "host", 18, error="Traceback:\n [/red] [bold]KeyError[/] \\"))
    database.count(rejected=2)
    database.log_metrics({"loss/total": 0.5})
    return database


def shown(renderable, width=80):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_keys_are_always_the_same(database):
    full, empty = status.gather(database, "game"), status.gather(MemoryDatabase(), "game")
    assert full.keys() == empty.keys() == KEYS
    assert all(worker.keys() == WORKER_KEYS for worker in full["workers"])
    assert json.loads(json.dumps(full)) == full
    assert json.loads(json.dumps(empty)) == empty


def test_the_numbers_are_the_runs(database):
    facts = status.gather(database, "game")
    assert [worker["id"] for worker in facts["workers"]] == ["play-1", "play-2"]
    wanted = {
        "run": "game", "experiment": "counting", "settings": {"learning_rate": 1e-3}, "version": 3, "update": 30,
        "step": 4000, "inserted": 4, "delivered": 6.0, "sessions": 4, "bytes": 20, "capacity": 50, "reuse": 1.5,
        "mean_return": 2.5, "episodes": 2, "counters": {"rejected": 2}, "metrics": {"loss/total": 0.5},
    }  # fmt: skip
    assert {name: facts[name] for name in wanted} == wanted


def test_an_empty_run_has_no_means():
    facts = status.gather(MemoryDatabase(), "game")
    assert (facts["reuse"], facts["mean_return"], facts["experiment"], facts["workers"]) == (None, None, None, [])
    assert status.headline(facts) == "run game: no trainer has created it yet"
    assert "nobody is at work" in shown(status.panel(facts))


def test_the_panel_fits_80_columns_and_takes_words_as_they_are(database):
    text = shown(status.panel(status.gather(database, "game")))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("counting", "return 2.50", "version 3", "4 of 50", "reuse 1.50", "1,234", "trainer"):
        assert word in text
    assert "[bold]KeyError[/]" in shown(status.panel(status.gather(database, "game")), width=200)


def test_what_was_lost_is_shown(database):
    database.beat(Worker("play-3", "play", "host", 19, dropped=1200, faults=2))
    text = shown(status.panel(status.gather(database, "game")), width=200)
    assert "1,200 sessions dropped; 2 games rebuilt" in text
    assert text.count("dropped") == text.count("rebuilt") == 1


@pytest.mark.parametrize(
    "nasty", ["[/]", "[red", "[/red]", "\\[x]", "a\\", "[link=x]y", "\x1b[31m", "日本語", "x" * 500]
)
def test_no_word_of_a_worker_breaks_the_panel(nasty):
    database = MemoryDatabase()
    database.beat(Worker("play-1", nasty, nasty, waits_for=nasty, error=nasty))
    assert shown(status.panel(status.gather(database, nasty)))


def test_a_silent_worker_shows(database):
    facts = status.gather(database, "game")
    facts["workers"][0]["seen"] = 9.0
    assert "[silent for 9 s]" in shown(status.panel(facts), width=200)


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_345_678, "2.3 MB"), (5e12, "5000.0 GB")]
)
def test_sizes(number, words):
    assert status.size(number) == words


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90_000, "25h00m")]
)
def test_durations(number, words):
    assert status.duration(number) == words


class Rows:
    """Numbers a trainer could give."""

    def __init__(self):
        self.step = 0

    def __call__(self):
        self.step += 100
        return {"update": self.step // 10, "step": self.step, "play/return": None, "loss/total": 1 / self.step}


def test_the_log_is_read_again_from_file_database_and_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    database, folder = MemoryDatabase(), RunFolder(tmp_path / "run")
    folder.write_settings({})
    log = status.TrainLog(Rows(), folder, database, seconds=1000)
    log.turn()
    assert folder.metrics() == []  # the interval has not passed
    log.write()
    log.close()
    rows = folder.metrics()
    assert [row["step"] for row in rows] == [100, 200]
    assert rows[0]["play/return"] is None
    assert log.latest == rows[-1]
    assert database.metrics() == rows
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss/total")
    assert [(event.step, event.value) for event in scalars] == [(100, pytest.approx(0.01)), (200, pytest.approx(0.005))]
    assert "play/return" not in events.Tags()["scalars"]


def test_the_clock_goes_on_after_a_restart(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_settings({})
    folder.log({"seconds": 5000.0, "step": 1})
    log = status.TrainLog(Rows(), folder, MemoryDatabase(), seconds=0)
    log.turn()
    log.close()
    assert all(row["seconds"] >= 5000.0 for row in folder.metrics())
    assert len(folder.metrics()) == 3


def test_a_lost_database_does_not_end_the_log(tmp_path):
    class Lost(MemoryDatabase):
        def log_metrics(self, row):
            raise DatabaseLost("gone")

    folder = RunFolder(tmp_path)
    folder.write_settings({})
    log = status.TrainLog(Rows(), folder, Lost())
    log.write()
    log.close()
    assert len(folder.metrics()) == 2
