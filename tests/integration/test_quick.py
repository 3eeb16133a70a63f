"""Commands that only look answer without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.people import a_spec
from tinyverse.core.run_config import run_config
from tinyverse.database.redis import RedisDatabase

CHECKOUT = Path(__file__).parents[2]
LOOK = """\
import sys
from tinyverse.cli import main as cli
try: cli.main(sys.argv[1:])
except SystemExit as ended: print(ended.code, 'torch' in sys.modules)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["plot", "looked-at"],
        ["info"],
        ["catch", "info"],
        ["catch", "report"],
        ["catch", "sessions", "ls"],
        ["catch", "clear", "--yes"],
    ],
    ids=" ".join,
)
def test_what_only_looks_imports_no_torch(tmp_path: Path, redis_url: str, words: list[str]) -> None:
    folder = tmp_path / "runs" / "looked-at"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "play/return": n}) + "\n" for n in range(3)))
    with contextlib.closing(RedisDatabase(redis_url, "looked-at")) as database:
        database.create(run_config("catch", {}, a_spec()))
    name = ["--name", "looked-at"] if words[0] == "catch" else []
    said = subprocess.run(
        [sys.executable, "-c", LOOK, *words, *name], capture_output=True, text=True, timeout=100, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "TINYVERSE_REDIS_URL": redis_url},
    )  # fmt: skip
    *shown, last = said.stdout.splitlines()
    assert last == "0 False" and shown, said
