"""RunFolder and the agreement of a run: checkpoints are whole or not there, and a conflict names both sides."""

from __future__ import annotations

import json
import logging
import os
import time

import numpy as np
import pytest
import torch

from tests.helpers.people import a_spec
from tinyverse.core import files
from tinyverse.core.errors import RunConflict, SettingsError
from tinyverse.core.run_config import check_can_join, check_spec, experiment_and_settings, run_config
from tinyverse.core.weights import WeightsFile
from tinyverse.trainer.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "environment")


def names(folder):
    return sorted(file.name for file in folder.checkpoints.iterdir())


def test_the_newest_three_checkpoints_are_kept(folder):
    assert folder.load() is None
    assert folder.newest() is None
    for update in (1, 20, 300, 4000, 50_000):
        folder.save(update, {"update": update})
    assert names(folder) == ["update-000000300.pt", "update-000004000.pt", "update-000050000.pt"]
    assert folder.load() == {"update": 50_000}
    assert folder.newest() == folder.checkpoints / "update-000050000.pt"


def test_a_checkpoint_gives_back_what_was_saved(folder):
    contents = {
        "learner": {"weights": {"a": torch.arange(3.0)}, "groups": [{"betas": (0.9, 0.99), "lr": 0.1, "name": "x"}]},
        "weights": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "number": np.float64(2.5), "count": np.int64(7), "none": None, "returns": [1.0, 2.0],
    }  # fmt: skip
    folder.save(1, contents)
    loaded = folder.load()
    assert torch.equal(loaded["learner"]["weights"]["a"], torch.arange(3.0))
    assert loaded["learner"]["groups"] == contents["learner"]["groups"]
    np.testing.assert_array_equal(loaded["weights"]["w"].numpy(), contents["weights"]["w"])
    assert [loaded[name] for name in ("number", "count", "none", "returns")] == [2.5, 7, None, [1.0, 2.0]]


def test_a_half_written_file_is_no_checkpoint(folder):
    folder.save(1, {"update": 1})
    (folder.checkpoints / "update-000000002.writing").write_bytes(b"half")
    assert folder.load()["update"] == 1
    assert folder.newest().name == "update-000000001.pt"


def test_checkpoints_half_written_by_one_that_was_killed_go(folder, monkeypatch):
    folder.checkpoints.mkdir(parents=True)
    left = [folder.checkpoints / f"update-000000007.pt.{pid}.writing" for pid in (4242, os.getpid())]
    monkeypatch.setattr(files, "is_gone", lambda pid: pid == 4242)
    for file in left:
        file.write_bytes(b"half")
    folder.save(1, {"update": 1})
    assert all(file.exists() for file in left)  # just written, perhaps by a machine that shares the folder
    for file in left:
        os.utime(file, (0, 0))
    folder.save(2, {"update": 2})
    assert not any(file.exists() for file in left) and folder.load()["update"] == 2


def test_a_failed_save_leaves_the_older_one(folder, monkeypatch):
    folder.save(1, {"update": 1})

    def full(contents, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(2, {"update": 2})
    assert folder.load()["update"] == 1


@pytest.mark.parametrize("damage", ["empty", "10 bytes", "half", "almost whole", "zeros", "text", "a word"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, damage, caplog):
    for update in (1, 2):
        folder.save(update, {"update": update, "weights": {"a": torch.zeros(1000)}, "version": update})
    whole = folder.newest().read_bytes()
    folder.newest().write_bytes({
        "empty": b"", "10 bytes": whole[:10], "half": whole[: len(whole) // 2], "almost whole": whole[:-10],
        "zeros": bytes(len(whole)), "text": b"gone with the wind " * 50, "a word": b"half",
    }[damage])  # fmt: skip
    with pytest.raises(SettingsError, match="no checkpoint"):
        WeightsFile.read(folder.newest())
    with caplog.at_level(logging.WARNING):
        assert folder.load()["update"] == 1
    assert "update-000000002.pt cannot be read" in caplog.text


def test_nothing_readable_is_nothing(folder, caplog):
    folder.save(1, {"update": 1})
    folder.newest().write_bytes(b"")
    assert folder.load() is None
    assert "cannot be read" in caplog.text


def test_a_checkpoint_cannot_execute(folder, tmp_path, caplog):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    folder.checkpoints.mkdir(parents=True)
    torch.save({"update": Bomb()}, folder.checkpoints / "update-000000001.pt")
    assert folder.load() is None
    with pytest.raises(SettingsError):
        WeightsFile.read(folder.newest())
    assert not (tmp_path / "exploded").exists()


def test_weights_come_out_of_a_checkpoint_file(folder, tmp_path):
    path = folder.save(3, {"version": 17, "weights": {"w": np.arange(4, dtype=np.float32)}})
    found = WeightsFile.read(path)
    assert found.version == 17
    np.testing.assert_array_equal(found.weights["w"], np.arange(4))
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"version": 1, "weights": 3}, tmp_path / "number.pt")
    for wrong in ("tensor.pt", "list.pt", "number.pt", "missing.pt"):
        with pytest.raises(SettingsError, match=f"{wrong} is no checkpoint"):
            WeightsFile.read(tmp_path / wrong)


def test_start_fresh_moves_the_older_run_aside_also_twice_in_a_second(folder):
    assert folder.start_fresh() is None
    asides = []
    for update in (1, 2, 3):
        folder.save(update, {"update": update})
        aside = folder.start_fresh()
        assert not folder.path.exists()
        assert folder.load() is None
        assert RunFolder(aside).load()["update"] == update
        assert aside.parent == folder.path.parent
        asides.append(aside)
    assert len(set(asides)) == 3
    assert time.strftime("%Y") in asides[0].name


def test_settings_come_back(folder):
    assert folder.settings() == {}
    folder.write_settings({"experiment": "environment", "settings": {"learning_rate": 1e-3}})
    assert folder.settings() == {"experiment": "environment", "settings": {"learning_rate": 1e-3}}
    assert json.loads((folder.path / "settings.json").read_text()) == folder.settings()
    assert [file.name for file in folder.path.iterdir() if file.is_file()] == ["settings.json"]


def test_rows_are_kept_over_a_crash_in_the_middle_of_a_line(folder):
    assert folder.rows() == []
    folder.write_settings({})
    folder.log({"update": 1, "loss": None})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 2, "lo')
    assert folder.rows() == [{"update": 1, "loss": None}]
    folder.log({"update": 3})  # the restarted trainer's first row
    folder.log({"update": 4})
    assert folder.rows()[0] == {"update": 1, "loss": None}
    assert folder.rows()[-1] == {"update": 4}


def test_the_agreement_says_what_it_was_told():
    spec = a_spec()
    meta = run_config("counting", {"learning_rate": 1e-3, "sizes": (1, 2)}, spec)
    assert all(isinstance(value, str) for value in meta.values())
    assert experiment_and_settings(meta) == {
        "experiment": "counting",
        "settings": {"learning_rate": 1e-3, "sizes": [1, 2]},
    }
    assert experiment_and_settings({}) == {}
    with pytest.raises(RunConflict, match=r"format 0.*1"):
        experiment_and_settings({**meta, "format": "0"})


def test_who_agrees_may_join():
    run_config = {"experiment": "counting", "settings": {"a": 1, "pair": [1, 2]}}
    check_can_join("environment", {}, "counting", {"a": 5})
    check_can_join("environment", run_config, "counting", {})
    check_can_join("environment", run_config, "counting", {"a": 1, "pair": (1, 2)})


def test_a_conflict_names_both_sides():
    run_config = {"experiment": "counting", "settings": {"a": 1}}
    with pytest.raises(RunConflict, match=r"run environment .* experiment counting, this is atari"):
        check_can_join("environment", run_config, "atari", {})
    with pytest.raises(RunConflict, match=r"run environment .* a=1, .* a=2"):
        check_can_join("environment", run_config, "counting", {"a": 2})


def test_all_settings_that_differ_are_listed_unless_forced():
    run_config = {"experiment": "counting", "settings": {"a": 1, "b": 2, "c": 3}}
    with pytest.raises(RunConflict, match=r"with a=1, c=3, this asks for a=5, c=6: .*--fresh.*--force"):
        check_can_join("environment", run_config, "counting", {"a": 5, "b": 2, "c": 6})
    check_can_join("environment", run_config, "counting", {"a": 5}, force=True)
    with pytest.raises(RunConflict, match="experiment"):
        check_can_join("environment", run_config, "atari", {}, force=True)


def test_another_spec_is_a_conflict_that_says_where():
    meta = run_config("counting", {}, a_spec())
    check_spec("environment", meta, a_spec())
    with pytest.raises(RunConflict, match=r"run environment cannot be joined: session\.\w+"):
        check_spec("environment", meta, a_spec(length=9))
    with pytest.raises(RunConflict, match=r"run environment cannot be joined: session\.\w+"):
        check_spec("environment", meta, a_spec(nested=True))
