"""Benchmarks: each runs through in its smoke form, and the report makes tables of what they print.

The numbers of a smoke test mean nothing; that there are any does.
"""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(file.stem for file in BENCHMARKS.glob("*.py") if file.stem not in ("measure", "report", "soak"))
RESULT = {
    "script": "player", "machine": "2 cores", "date": "2026-01-02", "smoke": False,
    "rows": [{
        "what": "Pong", "unit": "steps/s", "at_least": {"limit": 0.9, "naive": 3.0}, "note": "fp32",
        "rates": {"ours": [900.0, 1000.0, 1100.0], "limit": [1250.0] * 3, "naive": [250.0] * 3, "SB3": [500.0] * 3},
        "ratios": {"limit": 0.8, "naive": 4.0, "SB3": 2.0},
    }],
}  # fmt: skip


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "report.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_smoke_test_runs_through(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "atari_pool" in (BENCHMARKS / f"{script}.py").read_text() or script == "end_to_end":
        pytest.importorskip("ale_py")
    monkeypatch.setenv("TINYVERSE_PEERS", str(tmp_path))  # none there
    words = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--smoke", "--json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["script"] == script and result["smoke"] and result["machine"]
    assert result["rows"]
    for row in result["rows"]:
        check(row)


def check(row: dict[str, Any]) -> None:
    rates = [rate for values in row["rates"].values() for rate in values]
    assert rates and all(math.isfinite(rate) and rate > 0 for rate in rates), row
    assert row["ratios"].keys() == row["rates"].keys() - {"ours"} or "ours" not in row["rates"]
    if row["rates"].keys() >= {"ours", "limit"}:
        assert 0.001 < row["ratios"]["limit"] < 100, row  # parts of a second, beside other tests


def test_tables_show_what_was_measured_and_what_missed(report: dict[str, Any]) -> None:
    text = report["tables"]({"player": RESULT})
    assert "### `python benchmarks/player.py`\n\n2026-01-02, 2 cores\n" in text
    row = next(line for line in text.splitlines() if "Pong" in line)
    assert row == (
        "| Pong (fp32) | 1,000 steps/s | 900..1,100 | 1,250 | 250 | SB3 500 | "
        "limit **0.80** (wanted 0.90); naive 4.00 (wanted 3.00); SB3 2.00 |"
    )
    assert text.count("not measured here") == len(SCRIPTS) - 1


def test_only_the_tables_of_a_page_are_written(report: dict[str, Any]) -> None:
    page = f"before\n{report['BEGIN']}old{report['END']}after\n"
    new = report["updated"](page, {"player": RESULT})
    assert new.startswith("before\n") and new.endswith("after\n") and "old" not in new and "| Pong" in new
    assert report["updated"](new, {"player": RESULT}) == new
    with pytest.raises(ValueError, match="has no lines"):
        report["updated"]("no marks", {})


def test_results_are_kept_but_not_of_smoke_tests(report: dict[str, Any], tmp_path: Path) -> None:
    report["keep"](RESULT, tmp_path)
    report["keep"]({**RESULT, "rows": []}, tmp_path)  # nothing was measured: it does not replace what was
    assert report["kept"](tmp_path) == {"player": RESULT}
    with pytest.raises(ValueError, match="not kept"):
        report["keep"]({**RESULT, "smoke": True}, tmp_path)
