"""Writes into the last column of docs/faults.md what tests measured: python docs/_tools/faults.py REPORT.xml …

A REPORT.xml is what `pytest --junitxml=REPORT.xml` writes; a test calls record_property("goes on", seconds). Lines whose
tests are not in it stay as they are.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).resolve().parents[1] / "faults.md"


def measured(*reports: Path) -> dict[str, list[float]]:
    """Seconds by test, of all its parameters."""
    seconds = defaultdict(list)
    for case in (case for report in reports for case in ElementTree.parse(report).iter("testcase")):
        for found in case.iter("property"):
            if found.get("name") == "goes on":
                seconds[case.get("name", "").partition("[")[0]].append(float(found.get("value", "")))
    return seconds


def filled(page: str, seconds: dict[str, list[float]]) -> str:
    """The page with what was measured."""

    def line(text: str) -> str:
        times = [time for test in re.findall(r"`tests/[\w/]+\.py::(\w+)`", text) for time in seconds.get(test, [])]
        if not (text.startswith("|") and times):
            return text
        least, most = f"{min(times):.1f}", f"{max(times):.1f}"
        return f"{text.removesuffix('|').rpartition('|')[0]}| {least if least == most else f'{least} to {most}'} |"

    return "\n".join(map(line, page.split("\n")))


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), measured(*map(Path, sys.argv[1:]))))
