"""Heartbeats and rows: what goes in comes out, and whatever else lies on the server is passed over or made harmless."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tinyverse.database.base import Worker
from tinyverse.database.schema import decode_heartbeat, decode_row, encode_heartbeat, encode_row


def test_a_row_comes_back_with_plain_numbers() -> None:
    row = {"return": np.float32(0.5), "length": np.int64(3), "player": "p", "none": None}
    assert decode_row(encode_row(row).encode()) == {"return": 0.5, "length": 3, "player": "p", "none": None}


def test_a_worker_comes_back_with_its_age() -> None:
    worker = Worker("w", "play", steps=4, error="lost\nagain")
    beat = encode_heartbeat(worker, now=100.0).encode()
    assert decode_heartbeat(beat, now=103.5) == dataclasses.replace(worker, seen=3.5)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_row_is_none(text: bytes) -> None:
    assert decode_row(text) is None and decode_heartbeat(text, 0.0) is None


@pytest.mark.parametrize(
    "wrong",
    [{"steps": "many"}, {"steps": True}, {"host": 3}, {"lag": float("nan")}, {"stages": {"act": "x"}}, {"at": "noon"}],
)
def test_a_heartbeat_with_a_field_that_cannot_be_shown_is_none(wrong: dict[str, object]) -> None:
    beat = json.loads(encode_heartbeat(Worker("w", "play"), now=1.0))
    assert decode_heartbeat(json.dumps(beat).encode(), 1.0) is not None
    assert decode_heartbeat(json.dumps({**beat, **wrong}).encode(), 1.0) is None


def test_fields_of_other_releases_are_passed_over() -> None:
    beat = {**json.loads(encode_heartbeat(Worker("w", "play"), now=1.0)), "mood": 1}
    assert decode_heartbeat(json.dumps(beat).encode(), 1.0) == Worker("w", "play")


def test_nothing_that_is_shown_commands_a_terminal() -> None:
    evil = "\x1b[2J\x07a\tb\nc\u202e"
    worker = decode_heartbeat(encode_heartbeat(Worker("w", "play", error=evil), now=0.0).encode(), 0.0)
    row = decode_row(encode_row({"error": evil}).encode())
    assert worker is not None and row is not None
    assert worker.error == row["error"] == "?[2J?a\tb\nc?"
