"""Cursor: how far a reader has come in a run's sessions, as text: the id "milliseconds-number" of the last one it read.

Ids only grow within one incarnation of a run. A session's id is the cursor of a reader who has just read it.
"""

from __future__ import annotations

import re

BEGINNING = "0-0"  # before every session


def is_position(text: str) -> bool:
    """Whether the text is the id of a session, as `sessions ls` prints it."""
    return re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", text) is not None


def is_behind(position: str, reader: str) -> bool:
    """Whether a reader at the cursor `reader` has passed the session at `position`."""
    return to_numbers(position) <= to_numbers(reader)


def furthest(*positions: str) -> str:
    """The cursor that has come furthest.

    >>> furthest("5-9", "10-0", "5-10")
    '10-0'
    """
    return max(positions, key=to_numbers)


def just_before(position: str) -> str:
    """The cursor from which a reader finds the session at `position` first."""
    first, second = to_numbers(position)
    return f"{first}-{second - 1}" if second else f"{max(first - 1, 0)}-{2**64 - 1}"


def to_numbers(position: str) -> list[int]:
    """
    >>> to_numbers("17-2")
    [17, 2]
    """
    first, second = position.split("-")
    return [int(first), int(second)]
