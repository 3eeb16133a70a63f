"""Position: readers of several streams, compared stream by stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tinyverse.database.position import (
    BEGINNING,
    from_numbers,
    furthest,
    is_ahead,
    is_behind,
    is_position,
    joined,
    just_before,
    split,
    to_numbers,
)

MARKS = some.lists(some.builds("{}-{}".format, some.integers(0, 3), some.integers(0, 3)), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("position", "reader", "behind"),
    [
        ("5-1", "5-1", True), ("5-1", "5-0", False), ("9-0", "10-0", True), (BEGINNING, BEGINNING, True),
        ("7-0,2-0@1", "0-0,2-0@1", True),  # what the other stream's mark says of the reader who found it is no matter
        ("1-0,2-1@1", "9-0,2-0@0", False), ("1-0,2-1@0", "1-0", True), ("1-0,2-1@1", "9-0", False),
    ],
)  # fmt: skip
def test_a_session_is_behind_whoever_has_read_its_stream_so_far(position: str, reader: str, behind: bool) -> None:
    assert is_behind(position, reader) is behind


def test_streams_have_no_order_among_each_other() -> None:
    assert is_ahead("5-0,2-0", "4-0,3-0") and is_ahead("4-0,3-0", "5-0,2-0")
    assert not is_ahead("4-0,2-0@1", "4-0,2-1@0") and not is_ahead(BEGINNING, "0-0,0-0") and is_ahead("0-0,1-0", "7-0")
    assert furthest("5-0", "5-9", "4-99") == "5-9" and furthest("5-0,2-0@1") == "5-0,2-0"


@given(MARKS, MARKS, some.integers(0, 2))
def test_what_either_has_read_is_behind_both_together(ours: list[str], theirs: list[str], stream: int) -> None:
    together = furthest(joined(ours, stream), joined(theirs, stream))
    for marks in (ours, theirs):
        assert is_behind(joined(marks, stream), together) and not is_ahead(joined(marks, stream), together)
    assert all(mark in pair for mark, *pair in zip(split(together, 3), ours, theirs, strict=True))


@given(MARKS)
def test_numbers_come_back(marks: list[str]) -> None:
    assert from_numbers(to_numbers(joined(marks, 2), 3)) == ",".join(marks)


def test_just_before_a_session_its_reader_finds_it_first() -> None:
    assert just_before("5-2") == "5-1" and just_before("5-0") == f"4-{2**64 - 1}"
    first, second = split(just_before("9-0,5-2@1"), 2)
    assert second == "5-1" and not is_behind("9-0,5-2@1", f"{first},{second}") and is_behind("9999-0,0-0@0", first)


@pytest.mark.parametrize(
    "text", ["", "5", "5-", "a-1", "5-1@1", "5-1,@0", "5-1 ", "5-1,2-2@2", "1" * 21 + "-0", "٥-1@x"]
)
def test_what_is_no_position(text: str) -> None:
    assert not is_position(text)
    assert is_position("5-1") and is_position("5-1,2-2@1") and is_position("5-1,2-2")
