"""The soak: its books find what is missing, and in its shortest form it runs through."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyverse.core import codec
from tinyverse.database.memory import MemoryDatabase

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    return runpy.run_path(str(BENCHMARKS / "soak.py"))


def test_the_soak_explains_every_missing_session_or_says_so(soak: dict[str, Any]) -> None:
    books, database = soak["Books"](), MemoryDatabase()

    def pushed(*numbers: int) -> list[str]:
        arrays = {"x": np.zeros(1)}
        database.append([codec.encode(arrays, {"player": "p", "sequence": str(number)}) for number in numbers])
        return books.read(database, 0.0)

    assert pushed(0, 1, 2) == pushed(3, 2, 3) == []
    assert (books.arrived, books.twice, books.lost) == (4, 2, 0)
    assert pushed(6) == ["2 sessions of p are missing before its 6th"]
    books.losses.append(time.monotonic())
    assert pushed(10, 11) == [] and (books.arrived, books.lost) == (7, 5)
    assert pushed(13) == ["1 sessions of p are missing before its 13th"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_soak_runs_and_finds_nothing(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "soak.py"), "1", "--report", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    result = json.loads((tmp_path / "soak.json").read_text())
    assert sum(result["faults"].values()) > 2 and result["in the calm"]["made"] > 0
    assert (tmp_path / "soak.md").read_text().endswith("What was wrong: nothing.\n")
