"""Measures anew and writes the tables of docs/performance.md: what is kept in docs/results/benchmarks/, one file a script.

    python benchmarks/report.py                     every script: most of an hour, on a machine that does nothing else
    python benchmarks/report.py player trainer      only these; the other tables stay as they were measured
    python benchmarks/report.py --tables            measures nothing

The words around the tables are written by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import HERE, number

PAGE, RESULTS = HERE.parent / "docs" / "performance.md", HERE.parent / "docs" / "results" / "benchmarks"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
SCRIPTS = sorted(file.stem for file in HERE.glob("*.py") if file.stem not in ("measure", "report", "soak"))
COLUMNS = ("what", "ours", "spread", "limit", "naive", "others", "ours is … of them")
Result = Mapping[str, Any]


def measured(script: str) -> Result:
    """What a script printed after a full run, with the date."""
    words = [sys.executable, str(HERE / f"{script}.py"), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return {"date": datetime.date.today().isoformat(), **json.loads(done.stdout.splitlines()[-1])}


def keep(result: Result, folder: Path = RESULTS) -> None:
    """Stores a result for the tables; one without rows, as of a GPU where there is none, does not replace another.

    Raises:
        ValueError: it comes from a smoke test, whose numbers mean nothing.
    """
    if result["smoke"]:
        raise ValueError(f"{result['script']} was run with --smoke; such numbers are not kept.")
    if not result["rows"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['script']}.json").write_text(json.dumps(result, indent=1) + "\n")


def kept(folder: Path = RESULTS) -> dict[str, Result]:
    """The newest result of each script that was ever measured."""
    files = {script: folder / f"{script}.json" for script in SCRIPTS}
    return {script: json.loads(file.read_text()) for script, file in files.items() if file.exists()}


def tables(results: Mapping[str, Result]) -> str:
    """A table for each script."""
    return "\n".join(_table(script, results.get(script)) for script in SCRIPTS)


def updated(page: str, results: Mapping[str, Result]) -> str:
    """The page with new tables; the words around them stay."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no lines {BEGIN.strip()} and {END.strip()} to write the tables between.")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + tables(results) + END + rest.partition(END)[2]


def _table(script: str, result: Result | None) -> str:
    head = f"### `python benchmarks/{script}.py`\n\n"
    if result is None:
        return head + "not measured here\n"
    rows = [" | ".join(COLUMNS), "|".join(["---"] + ["---:"] * 4 + ["---"] * 2), *map(_row, result["rows"])]
    return head + f"{result['date']}, {result['machine']}\n\n" + "".join(f"| {row} |\n" for row in rows)


def _row(row: Result) -> str:
    rates = dict(row["rates"])
    ours, limit, naive = (rates.pop(way, None) for way in ("ours", "limit", "naive"))
    others = "; ".join(f"{way} {_median(values)}" for way, values in rates.items())
    note = f" ({row['note']})" if row["note"] else ""
    spread = f"{number(min(ours))}..{number(max(ours))}" if ours else ""
    ours = f"{_median(ours)} {row['unit']}" if ours else row["unit"]
    cells = (row["what"] + note, ours, spread, _median(limit), _median(naive), others, _ratios(row))
    return " | ".join(cell.replace("|", "\\|") for cell in cells)


def _median(values: list[float] | None) -> str:
    return number(statistics.median(values)) if values else ""


def _ratios(row: Result) -> str:
    """Ratios, and what they ought to be; in bold where they are not."""

    def ratio(way: str, value: float) -> str:
        wanted = row["at_least"].get(way)
        if wanted is None:
            return f"{way} {value:.2f}"
        text = f"{value:.2f}" if value >= wanted else f"**{value:.2f}**"
        return f"{way} {text} (wanted {wanted:.2f})"

    return "; ".join(ratio(way, value) for way, value in row["ratios"].items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"{', '.join(SCRIPTS)} [all]")
    parser.add_argument("--tables", action="store_true", help="write the tables of what was measured before")
    options = parser.parse_args()
    if unknown := set(options.scripts) - set(SCRIPTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    for script in [] if options.tables else options.scripts or SCRIPTS:
        print(f"==> {script}", flush=True)
        keep(measured(script))
    PAGE.write_text(updated(PAGE.read_text(), kept()))


if __name__ == "__main__":
    main()
