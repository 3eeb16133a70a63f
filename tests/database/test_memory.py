"""MemoryDatabase keeps the contract."""

from __future__ import annotations

import pytest

from tests.helpers.database_contract import DatabaseContract
from tinyverse.database.base import Database
from tinyverse.database.memory import MemoryDatabase


class TestMemoryDatabase(DatabaseContract):
    @pytest.fixture
    def database(self) -> Database:
        return MemoryDatabase()
