"""Position: how far a reader has come in the streams that hold a run's sessions, as one piece of text.

    "0-0"               the beginning
    "1763751234567-3"   one stream, read up to the session of this id
    "17-0,0-0,25-2@2"   three streams, how far each was read; the session at this position lies in stream 2, the last

What has a mark for fewer streams stands at the beginning of the others. Streams have no order among each other, so
positions are compared stream by stream: two readers may each be ahead of the other.
"""

from __future__ import annotations

import itertools
import re

BEGINNING = "0-0"  # before every session
END = f"{2**64 - 1}-0"  # after every session of a stream


def is_position(text: str) -> bool:
    """Whether the text is the position of a session, as `sessions ls` prints it."""
    own = re.fullmatch(r"\d{1,20}-\d{1,20}(,\d{1,20}-\d{1,20})*(@(\d{1,6}))?", text)
    return own is not None and int(own[3] or 0) <= text.count(",")


def is_behind(position: str, reader: str) -> bool:
    """Whether a reader who has come to `reader` has passed the session at `position`."""
    stream = _stream(position)
    passed = _marks(reader)
    return stream < len(passed) and _order(_marks(position)[stream]) <= _order(passed[stream])


def is_ahead(reader: str, other: str) -> bool:
    """Whether a reader has come further than another in any stream."""
    pairs = itertools.zip_longest(_marks(reader), _marks(other), fillvalue=BEGINNING)
    return any(_order(mark) > _order(others) for mark, others in pairs)


def furthest(*positions: str) -> str:
    """How far readers at these positions have come together.

    >>> furthest("5-0,2-0@1", "4-7,3-0@0")
    '5-0,3-0'
    """
    if len(positions) == 1 or len(set(positions)) == 1:
        return positions[0].partition("@")[0]
    columns = itertools.zip_longest(*map(_marks, positions), fillvalue=BEGINNING)
    return ",".join(max(column, key=_order) for column in columns)


def just_before(position: str) -> str:
    """From where a reader finds the session at `position` first: just before it, and at the end of all other streams."""
    stream, places = _stream(position), [END] * len(_marks(position))
    first, second = _order(_marks(position)[stream])
    places[stream] = f"{first}-{second - 1}" if second else f"{max(first - 1, 0)}-{2**64 - 1}"
    return ",".join(places)


def split(position: str, streams: int) -> list[str]:
    """How far each of so many streams was read."""
    return (_marks(position) + [BEGINNING] * streams)[:streams]


def joined(marks: list[str], stream: int) -> str:
    """The position of a session in `stream`, found by a reader who has come so far in each."""
    return f"{','.join(marks)}@{stream}"


def to_numbers(position: str, streams: int) -> list[int]:
    """Two numbers for each stream."""
    return [number for mark in split(position, streams) for number in _order(mark)]


def from_numbers(numbers: list[int]) -> str:
    """
    >>> from_numbers(to_numbers("17-0,25-2@1", streams=3))
    '17-0,25-2,0-0'
    """
    return ",".join(f"{first}-{second}" for first, second in zip(numbers[::2], numbers[1::2], strict=True))


def _marks(position: str) -> list[str]:
    return position.partition("@")[0].split(",")


def _stream(position: str) -> int:
    return int(position.partition("@")[2] or 0)


def _order(mark: str) -> tuple[int, ...]:
    return tuple(int(part) for part in mark.split("-"))
