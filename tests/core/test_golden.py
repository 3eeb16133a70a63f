"""Bytes that earlier versions wrote are read by this one: sessions, weights, a run's meta, a checkpoint with its replay.

`python tests/core/test_golden.py` writes tests/core/golden/FORMAT/ where it does not exist yet; what is there is never changed.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.people import a_spec, a_trainer
from tinyverse.core import codec
from tinyverse.core.run_config import FORMAT, check_spec, experiment_and_settings, run_config
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.weights import decode_weights, encode_weights
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Uniform
from tinyverse.trainer.run_folder import RunFolder

GOLDEN = Path(__file__).parent / "golden"
KINDS = {"plain": (False, 5), "nested": (True, 5), "compressed": (False, 200)}  # nested?, steps
FORMATS = sorted(path.name for path in GOLDEN.glob("*") if path.is_dir())
WEIGHTS = {"w": np.array([[0.5, -2.0, 3.25]], np.float32), "steps": np.array(7, np.int64)}
NUMBERS = {"version": 3, "update": 30, "step": 600}


def a_golden_trainer(folder: Path) -> Any:
    return a_trainer(
        MemoryDatabase(),
        folder=RunFolder(folder),
        sampler=Uniform(),
        flow=ReplayConfig(batch_size=2, buffer_size=8, reuse=None),
    )


def as_lists(session: Session) -> dict[str, Any]:
    return {name: array.tolist() for name, array in session.arrays.items()}


def write(folder: Path) -> None:
    """What this version writes."""
    from tests.helpers.people import a_player  # here: reading needs no player

    folder.mkdir(parents=True)
    for kind, (nested, length) in KINDS.items():
        player, _ = a_player(MemoryDatabase(), num_envs=1, nested=nested, length=length)
        player.version = player.update = 0
        session = player.play().sessions("play-golden", 5)[0]
        blob = codec.encode(session.arrays, session.metadata)
        (folder / f"session-{kind}.bin").write_bytes(codec.compress(blob) if kind == "compressed" else blob)
        (folder / f"session-{kind}.json").write_text(json.dumps(as_lists(session)))
        (folder / f"meta-{kind}.json").write_text(json.dumps(run_config("counting", {"x": 1}, a_spec(nested, length))))
    (folder / "weights.bin").write_bytes(encode_weights(WEIGHTS, **NUMBERS))
    (folder / "weights-bfloat16.bin").write_bytes(encode_weights(WEIGHTS, **NUMBERS, bfloat16=True))
    trainer = a_golden_trainer(folder / "run")
    trainer.join()
    player, _ = a_player(MemoryDatabase(), num_envs=2)
    player.version = player.update = 0
    for number in (0, 2):
        trainer.database.append([session.encode() for session in player.play().sessions("play-golden", number)])
    trainer.feed()
    assert trainer.step() and trainer.step()
    trainer.leave()
    (folder / "run.json").write_text(json.dumps({"version": trainer.version}))


def test_the_format_of_now_has_golden_files() -> None:
    assert FORMAT in FORMATS, "a new FORMAT: run python tests/core/test_golden.py and commit what it wrote"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_sessions(form: str, kind: str) -> None:
    blob = (GOLDEN / form / f"session-{kind}.bin").read_bytes()
    assert blob.startswith(codec.ZSTD_MAGIC) == (kind == "compressed")
    meta = json.loads((GOLDEN / form / f"meta-{kind}.json").read_text())
    session = SessionSpec.from_json(meta["spec"]).decode(blob)
    assert as_lists(session) == json.loads((GOLDEN / form / f"session-{kind}.json").read_text())
    assert session.metadata["player"] == "play-golden" and session.metadata["sequence"] == "5"
    check_spec("golden", meta, a_spec(*KINDS[kind]))
    assert experiment_and_settings(meta) == {"experiment": "counting", "settings": {"x": 1}}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["weights", "weights-bfloat16"])
def test_weights(form: str, name: str) -> None:
    weights, numbers = decode_weights((GOLDEN / form / f"{name}.bin").read_bytes())
    assert numbers == NUMBERS and weights.keys() == WEIGHTS.keys()
    for key, array in WEIGHTS.items():
        np.testing.assert_array_equal(weights[key], array)


@pytest.mark.parametrize("form", FORMATS)
def test_a_checkpoint_and_its_sessions(form: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / form / "run", tmp_path / "run")
    trainer = a_golden_trainer(tmp_path / "run")
    trainer.join()
    trainer.feed()
    assert (trainer.update, len(trainer.replay), trainer.learner.get_weights()["weight"].tolist()) == (2, 4, [2.0])
    assert trainer.version > json.loads((GOLDEN / form / "run.json").read_text())["version"]
    assert trainer.step()


if __name__ == "__main__":
    target = GOLDEN / FORMAT
    if target.exists():
        sys.exit(f"{target} exists. Golden files are never written again: raise FORMAT in tinyverse/run.py first.")
    write(target)
