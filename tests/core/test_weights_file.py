"""Weights files: what is written is read, by others too, and what is damaged is refused in one sentence."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from tinyverse.core.errors import SettingsError
from tinyverse.core.files import atomic_write
from tinyverse.core.weights import WeightsFile
from tinyverse.trainer.run_folder import RunFolder

WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}


def test_what_is_written_is_read(tmp_path):
    run_config, score = {"experiment": "environment", "settings": {"sizes": [1, 2]}}, {"mean": 1.5, "num_envs": 3}
    WeightsFile(WEIGHTS, 3, 2, 100, run_config, score).write(tmp_path / "x.safetensors")
    found = WeightsFile.read(tmp_path / "x.safetensors")
    assert found[1:] == (3, 2, 100, run_config, score)
    for name in WEIGHTS:
        np.testing.assert_array_equal(found.weights[name], WEIGHTS[name])


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "plain"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, damage):
    from safetensors.numpy import save

    path = tmp_path / "x.safetensors"
    WeightsFile(WEIGHTS, 3).write(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"weights, honestly", "cut": whole[:-1], "plain": save(WEIGHTS)}[damage])
    with pytest.raises(SettingsError, match=r"x\.safetensors is no checkpoint of a trainer and no file of weights"):
        WeightsFile.read(path)


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_left_goes_an_hour_later(tmp_path):
    dead, other = (subprocess.Popen(["true"]) for _ in range(2))
    assert dead.wait() == other.wait() == 0
    files = {
        f"best.{dead.pid}.writing": None,
        f"best.{os.getppid()}.writing": "its process is at work",
        f"best.{other.pid}.writing": "it may be another machine's, and was written just now",
        f"other.{dead.pid}.writing": "another file's",
        "best.mine.writing": "nobody's here",
        "best": "written",
    }
    for name in files:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"best.{other.pid}.writing").touch()
    atomic_write(tmp_path / "best", b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {name for name, why in files.items() if why}
    assert (tmp_path / "best").read_bytes() == b"whole"


def test_the_best_stays_until_it_is_beaten(tmp_path):
    folder = RunFolder(tmp_path / "run")
    kept = []
    for version, mean in enumerate([1.0, 3.0, 2.0, 3.0, 4.0]):
        best = folder.keep_best(WeightsFile(WEIGHTS, version, score={"mean": mean}))
        kept.append((WeightsFile.read(folder.best).version, best))
    assert kept == [(0, 1.0), (1, 3.0), (1, 3.0), (1, 3.0), (4, 4.0)]
