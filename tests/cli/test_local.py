"""Playing and training in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command_line import Tinyverse, one_sentence


def test_reuse_is_how_often_a_session_is_learned_from(tinyverse: Tinyverse) -> None:
    for reuse in (1, 3):
        assert tinyverse("tabular", "local", "-n", 60, "-q", "--name", f"r{reuse}", "--reuse", reuse).code == 0
        row = json.loads(Path(f"runs/r{reuse}/metrics.jsonl").read_text().splitlines()[-1])
        assert row["replay/reuse"] == pytest.approx(reuse, rel=0.2)


def test_games_of_local(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    for num_envs, sessions in ((2, 2), (4, 4)):
        said = tinyverse("catch", "local", "-n", 1, "-b", 4, "--num-envs", num_envs, "--name", f"g{num_envs}")
        assert said.code == 0
        assert (
            f" {4 * 9 - (4 - sessions)} steps" in said.err
        )  # a second session of an environment begins with its reset
    one_sentence(tinyverse("catch", "local", "-b", 3, "--num-envs", 2), 2, "make -b a multiple of --num-envs")
