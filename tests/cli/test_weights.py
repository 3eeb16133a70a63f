"""Which weights are judged and exported: the newest there are, wherever they lie, and it is said where."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest

from tinyverse.cli.context import RunContext
from tinyverse.cli.weights import WeightsTracker, weights_for
from tinyverse.core.errors import NoWeights, SettingsError
from tinyverse.core.weights import encode_weights
from tinyverse.database.redis import RedisDatabase
from tinyverse.trainer.run_folder import RunFolder

numbers = itertools.count()
META = {"format": "1", "experiment": "tabular", "settings": "{}", "spec": "{}"}


class Run:
    """A run of `tabular` on a server and in a folder, without a trainer; the weights are their version's number."""

    def __init__(self, url: str) -> None:
        self.context = RunContext("tabular", f"judged-{next(numbers)}", redis=url)
        self.database, self.folder = RedisDatabase(url, self.context.run), RunFolder(self.context.folder.path)
        self.database.create(META)
        self.database.acquire_lease("h:1:x")

    def publish(self, version):
        blob = encode_weights({"w": np.float32([version])}, version=version, update=version, step=0)
        self.database.put_weights(blob, version, holder="h:1:x", update=version, step=0)

    def save(self, version):
        contents = {"weights": {"w": np.float32([version])}, "version": version, "update": 1, "step": 0, "meta": META}
        return self.folder.save(version, contents)

    def find(self, weights=None, tracker=None):
        found = weights_for(self.context, weights, tracker or WeightsTracker())
        assert found is None or found.weights["w"] == found.version
        return found and found.version


@pytest.fixture
def run(redis_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Run(redis_url)
    with contextlib.closing(made.database):
        yield made


def said(capsys, run):
    return capsys.readouterr().err.replace(run.context.run, "RUN").removeprefix("tinyverse: ").strip()


@pytest.mark.parametrize(
    ("published", "saved", "taken", "sentence"),
    [
        (5, 9, 9, "taking version 9, from runs/RUN/; the server has 5 (--weights 5 takes that)"),
        (9, 5, 9, "taking version 9, from the server; runs/RUN/ has 5 (--weights 5 takes that)"),
        (7, 7, 7, ""),
        (None, 7, 7, ""),
        (7, None, 7, ""),
    ],
)
def test_the_newer_version_is_taken(run, capsys, published, saved, taken, sentence):
    if published is not None:
        run.publish(published)
    if saved is not None:
        run.save(saved)
    assert run.find() == taken
    assert said(capsys, run) == sentence


def test_either_is_taken_by_its_number(run, capsys):
    with pytest.raises(NoWeights, match="neither on a server nor in"):
        run.find()
    for version in (5, 6):
        run.publish(version)
    run.save(9)
    assert [run.find(weights) for weights in ("5", "6", "9")] == [5, 6, 9]
    with pytest.raises(SettingsError, match="has no version 7; the newest is 9, and 3 are kept"):
        run.find("7")
    assert said(capsys, run) == ""


def test_who_goes_on_follows_both_and_says_where_they_changed(run, capsys):
    tracker = WeightsTracker()

    def find():
        if (version := run.find(None, tracker)) is not None:
            tracker.version = version
        return version, said(capsys, run).partition(";")[0]

    run.publish(1)
    run.save(2)
    assert [find(), find()] == [(2, "taking version 2, from runs/RUN/"), (None, "")]
    run.save(3)
    assert [find(), find()] == [(3, ""), (None, "")]
    run.publish(4)
    assert [find(), find()] == [(4, "taking version 4, from the server"), (None, "")]


def test_a_damaged_checkpoint_is_passed_over(run, caplog):
    run.publish(5)
    run.save(9)
    run.save(10).write_bytes(b"half")
    assert run.find() == 9
    assert "cannot be read" in caplog.text
