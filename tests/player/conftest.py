"""A run with nobody at work."""

from __future__ import annotations

import pytest

from tests.helpers.people import HOLDER, a_spec
from tinyverse.core.run_config import run_config
from tinyverse.database.memory import MemoryDatabase


@pytest.fixture
def database():
    """A run with nobody at work, whose players need not wait."""
    database = MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    database.acquire_lease(HOLDER)
    return database
