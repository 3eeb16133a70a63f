"""Killed at every single step, one after the other, trainers, players and evaluators leave nothing half done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyverse.database.server import private_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(500)]
HERE = Path(__file__).parent


def deaths(who: str, folder: Path) -> dict[str, Any]:
    """What tests/helpers/doomed.py prints."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    with private_server() as server:
        done = subprocess.run(
            [sys.executable, HERE.parent / "helpers" / "doomed.py", who, server.url, folder],
            env=env, capture_output=True, text=True, timeout=480, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def around(*steps: str) -> set[str]:
    return {f"{when} {step}" for when in ("before", "within", "after") for step in steps}


def test_a_trainer_dies_at_every_step(tmp_path: Path) -> None:
    seen = deaths("trainer", tmp_path)
    requests = {
        "MULTI SET HSET EXEC",  # a publication
        "MULTI SET HSET HDEL UNLINK EXEC",  # one that pushes an older one out
        "MULTI HSET XTRIM EXEC",  # the read cursor, before an update
        "MULTI SET EXEC",  # the lease
        "MULTI XRANGE HGET HMGET TIME EXEC",  # sessions
    }
    wanted = around(*requests) | {"open .writing", "fsync", "rename .writing", "remove .writing", "remove .pt"}
    assert wanted <= set(seen["names"]), sorted(wanted - set(seen["names"]))
    assert seen["learned"] > len(seen["names"]) and seen["version"] > len(seen["names"]) / 2
    assert seen["update"] > 10


def test_a_player_dies_at_every_step(tmp_path: Path) -> None:
    seen = deaths("player", tmp_path)
    assert around("MULTI XADD HINCRBY HSET HGET HMGET TIME EXEC", "HDEL") <= set(seen["names"]), seen["names"]


def test_an_evaluator_dies_at_every_step(tmp_path: Path) -> None:
    """The best weights are replaced by better ones only, and by whole ones."""
    seen = deaths("evaluator", tmp_path)
    wanted = around("GET", "MULTI XADD EXEC", "MULTI HSET HGET HMGET TIME EXEC", "HDEL")
    wanted |= {"open .writing", "fsync", "rename .writing", "open .jsonl"}
    assert wanted <= set(seen["names"]), sorted(wanted - set(seen["names"]))
    assert seen["best"] == seen["version"] == len(seen["names"])
