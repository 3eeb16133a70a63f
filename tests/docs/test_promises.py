"""docs/promises.md and docs/faults.md name tests that exist; docs/_tools/faults.py fills in what they measured."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.helpers import servers

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def rows(page: str) -> list[str]:
    return [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(("page", "least"), [("promises.md", 19), ("faults.md", 26)])
def test_every_line_names_tests_that_exist(page: str, least: int) -> None:
    assert len(rows(page)) >= least
    for row in rows(page):
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "does not hold yet" in row, row
        for file, test in named:
            assert re.search(rf"^(def|class) {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_the_faults_are_numbered_and_each_line_is_whole() -> None:
    cells = [row.split("|") for row in rows("faults.md")]
    assert {len(cell) for cell in cells} == {8}
    assert all(re.search(r"\d|[a-z]{2}", cell[6]) for cell in cells), "how soon all goes on, or that nothing stops"
    assert [cell[1].strip() for cell in cells if cell[1].strip()] == [str(number) for number in range(1, 27)]


def test_measured_seconds_go_into_the_lines_of_their_tests(tmp_path: Path) -> None:
    report, script = tmp_path / "report.xml", runpy.run_path(str(DOCS / "_tools" / "faults.py"))
    case = '<testcase name="test_{}"><properties><property name="goes on" value="{}"/></properties></testcase>'
    report.write_text(f"<s>{case.format('a[x]', 0.26)}{case.format('a[y]', 3)}{case.format('b', 1.04)}</s>")
    page = "| 1 | `tests/x.py::test_a` | – |\n| 2 | `tests/x.py::test_b` | 7 |\n| 3 | `tests/x.py::test_c` | – |\n"
    wanted = page.replace("a` | –", "a` | 0.3 to 3.0").replace("| 7", "| 1.0")
    assert script["filled"](page, script["measured"](report)) == wanted


@pytest.mark.parametrize(
    ("counts", "line", "wrong"),
    [
        ('tests="12" failures="1" errors="2" skipped="3"', "6 | 3 | 3 | 2 |", 3),
        ('tests="2" failures="0" errors="0" skipped="2"', "0 | 0 | 2 | 2 |", 1),  # nothing was tested
        ("", "– | did not run | – | 2 |", 1),
    ],
)
def test_a_line_of_the_table_of_servers(tmp_path: Path, counts: str, line: str, wrong: int) -> None:
    path = servers.servers_here()[0]
    if counts:
        (tmp_path / "report.xml").write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    found, failed = servers.row(path, 100.0, tmp_path / "report.xml")
    assert failed == wrong and found == f"| {servers.name_of(path).replace('server-', 'server | ')} | {line}"
