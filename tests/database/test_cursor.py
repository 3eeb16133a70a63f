"""Cursors are compared as pairs of numbers, never as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tinyverse.database.base import BEGINNING, furthest, is_behind, is_session_id, just_before, to_numbers

CURSOR = some.builds("{}-{}".format, some.integers(0, 12), some.integers(0, 12))


@pytest.mark.parametrize(
    ("session_id", "reader", "behind"),
    [("5-1", "5-1", True), ("5-1", "5-0", False), ("9-0", "10-0", True), (BEGINNING, BEGINNING, True)],
)
def test_a_session_is_behind_whoever_has_read_so_far(session_id: str, reader: str, behind: bool) -> None:
    assert is_behind(session_id, reader) is behind


@given(CURSOR, CURSOR, CURSOR)
def test_what_anyone_has_read_is_behind_the_furthest(one: str, two: str, three: str) -> None:
    most = furthest(one, two, three)
    assert most in (one, two, three)
    assert all(is_behind(each, most) for each in (one, two, three))


@given(CURSOR)
def test_numbers_come_back(cursor: str) -> None:
    assert "{}-{}".format(*to_numbers(cursor)) == cursor


@given(CURSOR.filter(lambda cursor: cursor != BEGINNING), CURSOR)
def test_just_before_a_session_lies_no_other(session: str, other: str) -> None:
    before = just_before(session)
    assert not is_behind(session, before) and (is_behind(other, before) or is_behind(session, other))
    assert just_before("5-0") == f"4-{2**64 - 1}"


@pytest.mark.parametrize("text", ["", "5", "5-", "a-1", "5-1@1", "5-1,2-2", "5-1 ", "1" * 21 + "-0", "٥-1"])
def test_what_is_no_position(text: str) -> None:
    assert not is_session_id(text) and is_session_id("5-1")
