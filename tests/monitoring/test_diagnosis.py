"""Diagnosis: the sentences of `info` say what the numbers mean."""

from __future__ import annotations

import pytest

from tests.helpers.people import LENGTH, a_spec
from tests.helpers.terminal import shown
from tinyverse.core.run_config import run_config
from tinyverse.database.base import Worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.monitoring import diagnosis, status, terminal


def a_database(*workers, metrics=None, **numbers):
    database = MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    database.report(**numbers)
    for number, worker in enumerate(workers):
        database.beat(Worker(**{"id": f"{worker['role']}-{number}", "host": "here", **worker}))
    database.log_metrics({"step": 10, **(metrics or {})})
    return database


PLAY, TRAIN = {"role": "play"}, {"role": "train"}
BUSY = {"time/sample": 0.1, "time/update": 0.85}


@pytest.mark.parametrize(
    ("workers", "metrics", "says"),
    [
        ([], {}, "no trainer is at work; start one"),
        ([TRAIN | {"waits_for": "32 more new sessions"}], {}, "no player is at work yet; start one, or wait for one that is starting"),
        ([TRAIN], BUSY, "the trainer learns alone; nobody plays"),
        ([TRAIN, PLAY | {"stages": {"environment": 0.71, "act": 0.29}}], {"time/update": 0.3},
         "players: the environment takes 71% of a step; add players"),
        ([TRAIN, PLAY | {"stages": {"environment": 0.2, "act": 0.6}}], {"time/update": 0.3},
         "players: acting takes 75% of a step; add players, or play --cores 2"),
        ([TRAIN | {"waits_for": "3 more new sessions"}, PLAY], {}, "players: the trainer waits for them; add players"),
        ([TRAIN, PLAY | {"stages": {"environment": 0.3, "act": 0.2}}], BUSY,
         "trainer: an update takes 85% of its time; give it more threads, a GPU or bf16, or a smaller reuse"),
        ([TRAIN, PLAY | {"waits_for": "the trainer, which is 9 deliveries behind"}], BUSY, "trainer: an update takes 85%"),
        ([TRAIN, PLAY | {"stages": {"environment": 0.9, "act": 0.1}}], BUSY, "nobody waits long"),
        ([TRAIN, PLAY | {"waits_for": "the database"}], BUSY, "database: play on here waits for it"),
    ],
)  # fmt: skip
def test_the_bottleneck_is_named(workers, metrics, says):
    facts = status.gather(a_database(*workers, metrics=metrics), "x")
    assert facts["bottleneck"].startswith(says) and says in shown(terminal.panel(facts))


def test_a_run_that_is_not_there_has_no_sentences():
    facts = status.gather(MemoryDatabase(), "x")
    assert facts["bottleneck"] == "no trainer has created the run; start one" and diagnosis.lines(facts) == []


def test_rates_compression_and_how_long_a_wait_will_last():
    players = [PLAY | {"steps_per_second": 10.0 * LENGTH, "frame_skip": 4}, {"role": "human", "steps_per_second": 5.0}]
    trainer = TRAIN | {"waits_for": "312 of 500 sessions", "waits_seconds": 12.0}
    database = a_database(trainer, *players, reuse=2.0, max_ahead=10.0)
    database.append([bytes(a_spec().nbytes // 4)] * 4)
    facts = status.gather(database, "x")
    assert (facts["steps_per_second"], facts["frames_per_second"]) == (55.0, 205.0)
    assert facts["sessions_per_second"] == 11.0 and facts["reuse_wanted"] == 2.0
    assert facts["compression"] == pytest.approx(4, rel=0.05)
    assert facts["waits"] == {"train-0": "trainer waits: 312 of 500 sessions, since 12 s; about 17 s more at this rate"}
    assert "about 17 s more" in shown(terminal.panel(facts)) and "of 2 wanted" in shown(terminal.panel(facts))


@pytest.mark.parametrize(
    ("waits_for", "rate", "ends"),
    [
        ("3 more new sessions", 2.0, "about 2 s more at this rate"),
        ("1 more new session", 2.0, "about 0 s more at this rate"),
        ("1,200 more new sessions", 2.0, "about 600 s more at this rate"),
        ("8 more sessions (reuse 4 is reached)", 2.0, "about 4 s more at this rate"),
        ("8 more sessions (reuse 4 is reached)", 0.0, "since 1 s"),
        ("8 more sessions", None, "since 1 s"),
        ("the database", 2.0, "the database, since 1 s"),
        ("", 2.0, ""),
    ],
)
def test_a_wait_is_only_foretold_where_it_can_be(waits_for, rate, ends):
    said = diagnosis.wait({"role": "train", "waits_for": waits_for, "waits_seconds": 1.0}, rate)
    assert said.endswith(ends) and bool(said) == bool(waits_for)


def test_the_curve_is_the_logs():
    database = a_database(TRAIN)
    for step in range(100):
        database.log_metrics({"step": step, "play/return": None if step < 10 else float(step)})
    facts = status.gather(database, "x")
    assert facts["curve"][0] == [10, 10.0] and facts["curve"][-1] == [99, 99.0]
    assert "▁" in diagnosis.lines(facts)[0] and diagnosis.lines(facts)[0].endswith("█ 99")


@pytest.mark.parametrize(
    "reason", [", more session", ", of , session", "9" * 400 + " of 3 sessions", "9" * 400 + " sessions"], ids=len
)
def test_a_reason_that_only_looks_like_a_count_is_a_reason(reason):
    worker = {"role": "play", "waits_for": reason, "waits_seconds": 1}
    assert diagnosis.wait(worker, 1e-300).startswith("player waits: ")


@pytest.mark.parametrize("stage", ["{", "{share:2000000000}", "{0.__class__}"])
def test_a_stage_is_a_name_and_no_format(stage):
    worker = {"role": "play", "waits_for": "x", "stages": {stage: 0.1}, "host": "h"}
    facts = {"run_id": "x", "workers": [worker, {**worker, "role": "train", "waits_for": "y"}], "metrics": {}}
    assert f"players: {stage} takes 100% of a step" in diagnosis.bottleneck(facts)
