"""Looking: stored sessions as tables, films and files; what was exported comes back bit for bit, or not at all."""

from __future__ import annotations

import json
import threading
import time

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, a_run, a_spec, an_agent, until
from tinyverse.cli import sessions_work
from tinyverse.cli.context import Asked
from tinyverse.core import codec
from tinyverse.core.errors import CodecError, DatabaseError, SettingsError, SpecError
from tinyverse.core.run_config import run_config
from tinyverse.core.session import Session, SessionSpec, flatten
from tinyverse.database import archive
from tinyverse.database.base import Worker
from tinyverse.envs.pool import GamePool
from tinyverse.player.player import Player


def some(count, nested=False, human=()):
    """Sessions of the counting game."""
    player = Player(an_agent(nested), GamePool(lambda: CountingEnv(nested), 1), LENGTH, seed=2)
    player.version, player.update = 3, 30
    marks = [{"human": "1"} if number in human else {} for number in range(count)]
    return [player.play().sessions("play-x", number, **marks[number])[0] for number in range(count)]


def a_stored_run(redis_url, sessions=(), nested=False, spec=None, **settings):
    """(what was asked, the database) of a run that holds these sessions."""
    database = a_run(redis_url)
    database.create(run_config("counting", settings, spec or a_spec(nested)))
    if sessions:
        database.append([session.encode() for session in sessions])
    return Asked("counting.py", name=database.run, redis=redis_url, quiet=True), database


def everything(database):
    """What stands in the run's keys, but for the server's clock."""
    return database.meta(), database.state(), database.read("0-0", 1000)[0], database.counters(), database.workers()


# -- tables ----------------------------------------------------------------------------------------------------------


def test_the_list_has_a_line_per_session_and_nothing_is_written(redis_url, capsys):
    sessions = some(5, human={3})
    asked, database = a_stored_run(redis_url, sessions)
    database.append([b"no session"])
    database.report(update=37)
    before = everything(database)
    sessions_work.do_list(asked, limit=3, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("sequence") for row in rows] == [3, 4, None] and "header claims" in rows[2]["error"]
    assert [row.get("human") for row in rows] == [True, False, None] and rows[0]["lag"] == 7
    assert rows[0]["reward"] == sessions[3].rewards[sessions[3].alive].sum()
    assert rows[0]["episodes"] == [total for total, _ in sessions[3].episodes]
    assert [row["id"] for row in rows] == [key for key, _ in before[2][-3:]]
    sessions_work.do_list(asked, human=True)
    text = capsys.readouterr().out
    assert all(row["id"] in text for row in rows[::2])  # whole, for copying
    assert "cannot be read" in text and "6 sessions of run" in text
    sessions_work.do_show(asked, rows[0]["id"])
    assert everything(database) == before


def test_a_session_is_shown_step_by_step(redis_url, capsys):
    session = some(3)[1]
    asked, database = a_stored_run(redis_url, [session])
    (key, _), *_ = database.read("0-0", 1)[0]
    sessions_work.do_show(asked, key, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == key and shown["metadata"] == session.metadata
    assert [row["reward"] for row in shown["rows"]] == session.rewards.tolist()
    assert [row["action"] for row in shown["rows"]] == session.actions.tolist()
    ends = ["reset" if not a else "terminated" if t else "truncated" if u else ""
            for a, t, u in zip(session.alive, session.terminated, session.truncated, strict=True)]  # fmt: skip
    assert [row["end"] for row in shown["rows"]] == ends and {"reset"} < set(ends)
    sessions_work.do_show(asked, None)  # the newest
    assert "terminated" in capsys.readouterr().out


def test_entropy_and_log_probability_are_those_the_agent_noted():
    session = some(1)[0]
    logits = np.log(np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1, 1e-30, 1e-30]], np.float32))
    three = {name: getattr(session, name)[:3] for name in ("actions", "rewards", "terminated", "truncated", "alive")}
    extras = {"behaviour_logits": logits, "behaviour_log_prob": np.array([-1, -2, -3], np.float32)}
    known = Session(flatten({"observations": session.observations[:4], "extras": extras, **three}))
    rows = sessions_work.steps_of(known)
    np.testing.assert_allclose([row["entropy"] for row in rows], [1.5 * np.log(2), np.log(3), 0], atol=1e-6)
    assert [row["log_prob"] for row in rows] == [-1, -2, -3] and {row["value"] for row in rows} == {None}
    assert [row["value"] for row in sessions_work.steps_of(known, value=np.arange(3.0))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "says"), [("x", "no session's id"), ("1-2-3", "no session's id"), ("1-0", "has no session 1-0")]
)
def test_an_id_that_leads_nowhere_is_said_so(redis_url, key, says):
    asked, _ = a_stored_run(redis_url, some(1))
    with pytest.raises(SettingsError, match=says):
        sessions_work.do_show(asked, key)


def test_what_is_not_there_is_said_so(redis_url):
    asked, _ = a_stored_run(redis_url)
    with pytest.raises(SettingsError, match="has no session yet"):
        sessions_work.do_show(asked, None)
    with pytest.raises(DatabaseError, match="there is no run nobody"):
        sessions_work.do_list(Asked("x.py", name="nobody", redis=redis_url))


# -- films -----------------------------------------------------------------------------------------------------------


def test_an_image_is_filmed_as_it_is_and_numbers_as_cells():
    session = some(1)[0]
    images = np.arange((LENGTH + 1) * 6 * 8 * 3, dtype=np.uint32).astype(np.uint8).reshape(LENGTH + 1, 6, 8, 3)
    seen = Session({**session.arrays, **flatten({"observations": {"a": session.observations, "b": images}})})
    del seen.arrays["observations"]
    np.testing.assert_array_equal(list(sessions_work.frames_of(seen)), images)
    cells = np.stack(list(sessions_work.frames_of(session)))
    assert cells.shape == (LENGTH + 1, 2 * sessions_work.CELL, 2 * sessions_work.CELL) and cells.dtype == np.uint8
    step = session.observations[:, 1].astype(float)
    wanted = (255 * (step - step.min()) / (step.max() - step.min())).astype(np.uint8)
    np.testing.assert_array_equal(cells[:, 0, sessions_work.CELL], wanted)


def test_a_film_has_a_frame_per_observation(redis_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked, _ = a_stored_run(redis_url, some(2))
    path = sessions_work.do_film(asked, None)
    video = cv2.VideoCapture(str(path))
    assert sum(iter(lambda: video.read()[0], False)) == LENGTH + 1
    assert path.name.startswith(f"{asked.run}-") and path.suffix == ".webm"


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_export_and_import_bring_back_every_bit(redis_url, tmp_path, nested, monkeypatch):
    monkeypatch.setattr(archive, "SHARD_SESSIONS", 4)
    sessions = some(10, nested, human={2, 5})
    asked, database = a_stored_run(redis_url, sessions, nested)
    found = sessions_work.do_export(asked, tmp_path / "d" / "all.json")
    assert len(found) == 10 and [len(shard["sessions"]) for shard in found.shards] == [4, 4, 2]
    there, other = a_stored_run(redis_url, nested=nested)
    assert sessions_work.do_import(there, found.path) == 10
    wanted, got = ([blob for _, blob in each.read("0-0", 100)[0]] for each in (database, other))
    assert got == wanted == [session.encode() for session in sessions]
    assert other.state().inserted == 10

    again = sessions_work.do_export(there, tmp_path / "again.json")
    for one, two in zip(found.shards, again.shards, strict=True):
        assert found.path.with_name(one["file"]).read_bytes() == again.path.with_name(two["file"]).read_bytes()


def test_only_people_and_only_the_newest(redis_url, tmp_path):
    asked, _ = a_stored_run(redis_url, some(10, human={2, 5, 9}))
    humans = [
        session.metadata["sequence"] for _, session in sessions_work.do_export(asked, tmp_path / "h.json", human=True)
    ]
    newest = [
        session.metadata["sequence"] for _, session in sessions_work.do_export(asked, tmp_path / "n.json", limit=3)
    ]
    assert (humans, newest) == (["2", "5", "9"], ["7", "8", "9"])


def test_any_tool_opens_a_shard(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "compress", lambda blob: blob)
    sessions = some(4)
    asked, _ = a_stored_run(redis_url, sessions)
    sessions_work.do_export(asked, tmp_path / "all.json")
    arrays = load_file(tmp_path / "all-00000.safetensors")
    np.testing.assert_array_equal(arrays["observations"], np.stack([each.observations for each in sessions]))


def test_hdf5_holds_every_field(redis_url, tmp_path):
    h5py = pytest.importorskip("h5py")
    sessions = some(4, human={1})
    asked, _ = a_stored_run(redis_url, sessions)
    assert sessions_work.do_export_hdf5(asked, tmp_path / "all.h5") == 4
    with h5py.File(tmp_path / "all.h5") as file:
        for name, array in sessions[2].arrays.items():
            np.testing.assert_array_equal(file[name][2], array)
            assert file[name].dtype == array.dtype
        assert [json.loads(text) for text in file["metadata"].asstr()] == [each.metadata for each in sessions]
        assert json.loads(file.attrs["run"]) == asked.run
    assert sessions_work.do_export_hdf5(asked, tmp_path / "one.h5", human=True) == 1
    with pytest.raises(SettingsError, match="is there already"):
        sessions_work.do_export_hdf5(asked, tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.h5", "one.h5"]


def changed(path, function):
    index = json.loads(path.read_text())
    function(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda path: path.write_text("{"), CodecError, "is no JSON"),
        (lambda path: path.write_text("[" * 100_000), CodecError, "is no JSON"),
        (lambda path: path.write_text("[]"), CodecError, "no index of exported sessions"),
        (lambda path: changed(path, lambda index: index.update(shards=[{}])), CodecError, "shards in .* garbled"),
        (lambda path: changed(path, lambda index: index.update(spec=[])), SpecError, "garbled"),
        (lambda path: changed(path, lambda i: i["shards"][0].update(file="../x")), CodecError, "garbled"),
        (lambda path: changed(path, lambda i: i["shards"][0]["sessions"].pop()), CodecError, "not what its index says"),
        (lambda path: changed(path, lambda i: i["shards"][0]["sessions"][0]["metadata"].update(update="-1")), CodecError,
         "session .* cannot be imported: the metadata has update '-1'.*Nothing was"),
        (lambda path: changed(path, lambda i: i["shards"][0]["sessions"][0]["metadata"].update(update=1)), CodecError,
         "garbled"),
        (lambda path: next(path.parent.glob("*.safetensors*")).write_bytes(b"x"), CodecError, "its checksum differs"),
        (lambda path: next(path.parent.glob("*.safetensors*")).unlink(), CodecError, "Keep it beside its index"),
        (lambda path: path.unlink(), SettingsError, "cannot be read"),
    ],
)  # fmt: skip
def test_damage_is_named_and_nothing_of_it_is_pushed(redis_url, tmp_path, damage, error, says):
    asked, _ = a_stored_run(redis_url, some(4))
    path = sessions_work.do_export(asked, tmp_path / "all.json").path
    damage(path)
    there, other = a_stored_run(redis_url)
    with pytest.raises(error, match=says):
        sessions_work.do_import(there, path)
    assert other.size()["sessions"] == 0


def test_sessions_of_another_game_are_refused_in_one_sentence(redis_url, tmp_path):
    asked, _ = a_stored_run(redis_url, some(4))
    path = sessions_work.do_export(asked, tmp_path / "all.json").path
    there, other = a_stored_run(redis_url, spec=a_spec(length=LENGTH + 1))
    says = rf"all.json does not fit run {there.run}: session\.observations is int32 \(6, 3\), this run's sessions have int32 \(7, 3\)"
    with pytest.raises(SpecError, match=says):
        sessions_work.do_import(there, path)
    nan = SessionSpec(a_spec().fields)
    bad = some(2)
    bad[1].rewards[0] = np.nan
    archive.write(tmp_path / "bad.json", [("1-0", bad[0]), ("2-0", bad[1])], nan, {})
    there, other = a_stored_run(redis_url)
    with pytest.raises(SpecError, match="session 2-0 of .*bad.json cannot be imported: session.rewards holds NaN"):
        sessions_work.do_import(there, tmp_path / "bad.json")
    assert other.size()["sessions"] == 0


def test_an_export_overwrites_nothing_and_is_a_json(redis_url, tmp_path):
    asked, _ = a_stored_run(redis_url, some(1))
    sessions_work.do_export(asked, tmp_path / "a.json")
    with pytest.raises(SettingsError, match="is there already"):
        sessions_work.do_export(asked, tmp_path / "a.json")
    with pytest.raises(SettingsError, match=r"not 'a\.pt': call it .*a\.json"):
        sessions_work.do_export(asked, tmp_path / "a.pt")


def test_an_import_comes_in_bounded_parts_and_waits_for_a_trainer_at_work(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions_work, "AT_ONCE", 3)
    asked, _ = a_stored_run(redis_url, some(8))
    path = sessions_work.do_export(asked, tmp_path / "all.json").path
    there, other = a_stored_run(redis_url)
    other.report(reuse=1.0, allowance=2.0)
    other.beat(Worker("train-1", "train"))
    pushes = threading.Thread(target=sessions_work.do_import, args=(there, path), daemon=True)
    pushes.start()
    until(lambda: other.state().inserted == 3)
    time.sleep(0.3)
    assert other.state().inserted == 3
    other.report(delivered=3)
    until(lambda: other.state().inserted == 6)
    other.leave("train-1")  # nobody to wait for
    pushes.join(10)
    assert other.state().inserted == 8
