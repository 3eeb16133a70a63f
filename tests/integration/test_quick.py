"""Commands that only look answer without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.people import a_spec
from tinyverse.core.run_config import run_config
from tinyverse.database.redis import RedisDatabase

CHECKOUT = Path(__file__).parents[2]
COMMANDS = [
    "plot looked-at",
    "info",
    "catch info --name looked-at",
    "catch report --name looked-at",
    "catch sessions ls --name looked-at",
    "catch clear --yes --name looked-at",
]
LOOK = """\
import sys
from tinyverse.cli import main as cli
for command in sys.argv[1:]:
    try:
        cli.main(command.split())
    except SystemExit as ended:
        print("==", ended.code, "torch" in sys.modules, command)
"""


def test_what_only_looks_imports_no_torch(tmp_path: Path, redis_url: str) -> None:
    folder = tmp_path / "runs" / "looked-at"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "play/return": n}) + "\n" for n in range(3)))
    with contextlib.closing(RedisDatabase(redis_url, "looked-at")) as database:
        database.create(run_config("catch", {}, a_spec()))
    said = subprocess.run(
        [sys.executable, "-c", LOOK, *COMMANDS], capture_output=True, text=True, timeout=100, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TINYVERSE_REDIS_URL": redis_url},
    )  # fmt: skip
    parts = re.split(r"^== (.*)\n", said.stdout, flags=re.MULTILINE)
    assert parts[1::2] == [f"0 False {command}" for command in COMMANDS], said
    assert all(parts[:-1:2]), "each shows something"
