"""What a State says of back-pressure, and who may be known to be dead."""

from __future__ import annotations

import os

import pytest

from tests.helpers.database_contract import HERE, dead_pid
from tinyverse.database.base import State, holder_is_dead


def test_back_pressure_by_hand() -> None:
    """A player may begin while inserted·reuse − sampled ≤ max_ahead."""
    assert State(inserted=10, reuse=4.0, sampled=30.0).deficit == 10.0
    assert State(inserted=10, reuse=4.0, sampled=30.0, max_ahead=10.0).may_play
    assert not State(inserted=10, reuse=4.0, sampled=29.0, max_ahead=10.0).may_play
    assert State(inserted=10**9).may_play


@pytest.mark.parametrize(
    ("holder", "dead"),
    [
        (f"{HERE}:{dead_pid()}:x", True),
        (f"{HERE}:{os.getpid()}:x", False),
        (f"{HERE}:1:x", False),
        (f"elsewhere:{dead_pid()}:x", False),
        (f"{HERE}:0:x", False),
        (f"{HERE}:-1:x", False),
        (f"{HERE}:{10**30}:x", False),
        ("nonsense", False),
        ("", False),
    ],
    ids=["dead", "myself", "init", "elsewhere", "zero", "negative", "huge", "nonsense", "empty"],
)
def test_who_is_surely_dead(holder: str, dead: bool) -> None:
    assert holder_is_dead(holder) is dead
