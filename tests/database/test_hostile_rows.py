"""Rows from the wire: whatever stands in them, every reader of a run goes on, and shows nothing that commands a terminal."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.people import a_spec
from tests.helpers.terminal import shown
from tinyverse.core.run_config import run_config
from tinyverse.database.base import STALE_AFTER, Worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.database.schema import LONGEST_ROW, MOST_ENVS, decode_heartbeat, decode_row, encode_heartbeat
from tinyverse.monitoring import dashboard, status, terminal
from tinyverse.trainer.run_folder import RunFolder

NOW = 1000.0
BEAT = json.loads(
    encode_heartbeat(Worker("w", "play", "host", 1, 2, stages={"act": 0.5}, waits_for="3 of 9 sessions"), NOW)
)
EPISODE = {"return": 1.5, "length": 9, "version": 3, "human": True}
METRICS = {"step": 5, "update": 1, "play/return": 2.0, "loss/total": None, "eval/return": 1.0, "eval/best": 1.0}
ERROR = {"role": "play", "host": "h", "pid": 1, "when": "noon", "error": "KeyError: x", "traceback": "a\n  b"}
NASTY: list[Any] = [
    10**400, -(10**30), 2**64, 1e308, -1, 0.5, math.nan, math.inf, True, None, "", "{", "{share:2000000000}", "9" * 5000, "\x1b]0;x\x07",
    "a\nb", "\u202e\ud800", ", more session", "9" * 400 + " of 3 sessions", [], {}, {"{": 0.1}, {"\x1b[2J": 1.0}, [[[]]], {"a": {}},
]  # fmt: skip


class Rows(MemoryDatabase):
    """A database whose rows have come through the decoder, as those of a server do."""

    def __init__(self, rows: list[bytes]) -> None:
        super().__init__()
        self.create(run_config("counting", {}, a_spec()))
        self.rows = [row for row in map(decode_row, rows) if row is not None]
        self.beats = [beat for row in rows if (beat := decode_heartbeat(row, NOW)) is not None]

    def workers(self) -> list[Worker]:
        return self.beats

    def episodes(self, limit: int = 100) -> list[dict[str, Any]]:
        return self.rows

    metrics = errors = episodes


def look(rows: list[bytes]) -> None:
    """Everything that reads rows."""
    database = Rows(rows)
    facts = status.gather(database, "run")
    said = shown(terminal.panel(facts)) + shown(terminal.errors(facts))
    assert all(letter.isprintable() or letter == "\n" for letter in said), said
    assert sys.getsizeof(said) < 8 << 20
    columns = dashboard.history(database, RunFolder("/nowhere"))
    json.dumps([facts, columns], allow_nan=False).encode()


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def mutant(chance: random.Random) -> bytes:
    """A real row with one to three values, names or bytes replaced."""
    row: dict[str, Any] = dict(chance.choice((BEAT, BEAT, EPISODE, METRICS, ERROR)))
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(list(row))
        if chance.random() < 0.2:
            row[str(chance.choice(NASTY))[:300]] = row.pop(name)
        else:
            row[name] = chance.choice(NASTY)
        if not row:
            break
    data = bytearray(as_bytes(row))
    if chance.random() < 0.3:
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NASTY)
anything = st.recursive(
    plain, lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=9), parts, max_size=3)
)
rows = st.one_of(
    anything,
    *(st.fixed_dictionaries({}, optional={name: anything | st.just(value) for name, value in row.items()}).map(lambda some, row=row: {**row, **some})
      for row in (BEAT, EPISODE, METRICS, ERROR)),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(rows.map(as_bytes) | st.binary(max_size=40), max_size=6))
def test_no_row_stops_a_reader(rows: list[bytes]) -> None:
    look(rows)


def test_no_mutant_stops_a_reader() -> None:
    chance = random.Random(1)
    for _ in range(40):
        look([mutant(chance) for _ in range(25)])


@pytest.mark.slow
def test_a_million_mutants() -> None:
    chance, began = random.Random(2), time.process_time()
    for _ in range(10_000):
        look([mutant(chance) for _ in range(100)])
    print(f"1,000,000 mutants in {time.process_time() - began:.0f} s")


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 10**400}, {"num_envs": 0.5}, {"num_envs": MOST_ENVS + 1}, {"steps": -1}, {"lag": math.inf}, {"at": NOW + STALE_AFTER + 1},
        {"at": 1e12}, {"stages": {"a": math.nan}}, {"stages": {str(n): 0 for n in range(99)}},
    ],
    ids=str,
)  # fmt: skip
def test_a_heartbeat_beyond_its_bounds_is_none(wrong: dict[str, Any]) -> None:
    assert decode_heartbeat(as_bytes(BEAT), NOW) is not None
    assert decode_heartbeat(as_bytes({**BEAT, **wrong}), NOW) is None


def test_sizes_are_limited_before_anything_is_parsed() -> None:
    assert decode_row(b'{"a": "' + b"x" * LONGEST_ROW + b'"}') is None
    assert decode_row(b'{"a": ' + b"9" * 100_000 + b"}") is None
    assert decode_row(as_bytes({str(number): 1 for number in range(2000)})) is None
    worker = decode_heartbeat(as_bytes({**BEAT, "waits_for": "x" * 5000, "host": "a\nb"}), NOW)
    assert worker is not None and len(worker.waits_for) == 200 and worker.host == "a?b"


def test_what_a_row_may_not_hold_is_left_out() -> None:
    assert decode_row(as_bytes({"a": 1, "b": [1], "c": {}, "d": 10**400, "e": "x\ny", "\x1b": 2})) == {
        "a": 1,
        "e": "x?y",
        "?": 2,
    }


if __name__ == "__main__":
    test_a_million_mutants()
