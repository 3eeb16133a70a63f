"""Looking: stored sessions as tables, films and files; what was exported comes back bit for bit, or not at all."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.command_line import Tinyverse, swap_with_spy
from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, a_run, a_spec, a_trainer, an_agent, until
from tinyverse.cli import sessions
from tinyverse.cli.context import RunContext
from tinyverse.core import codec
from tinyverse.core.errors import CodecError, DatabaseError, SettingsError, SpecError
from tinyverse.core.run_config import run_config
from tinyverse.core.session import SessionSpec
from tinyverse.database import archive
from tinyverse.database.base import Worker
from tinyverse.envs.pool import SerialPool
from tinyverse.monitoring import sessions as stored
from tinyverse.player.player import Player
from tinyverse.replay.config import ReplayConfig


def some(count, nested=False, human=()):
    """Sessions of the counting game."""
    player = Player(an_agent(nested), SerialPool(lambda: CountingEnv(nested), 1), LENGTH, seed=2)
    player.version, player.update = 3, 30
    marks = [{"human": "1"} if number in human else {} for number in range(count)]
    return [player.play().sessions("play-x", number, **marks[number])[0] for number in range(count)]


def a_stored_run(redis_url, stored_sessions=(), nested=False, spec=None, **settings):
    """(the context, the database) of a run that holds these sessions."""
    database = a_run(redis_url)
    database.create(run_config("counting", settings, spec or a_spec(nested)))
    if stored_sessions:
        database.append([session.encode() for session in stored_sessions])
    return RunContext("counting.py", name=database.run, redis=redis_url, quiet=True), database


def everything(database):
    """What stands in the run's keys, but for the server's clock."""
    return database.meta(), database.state(), database.read("0-0", 1000)[0], database.counters(), database.workers()


def exported(context, path, **options):
    sessions.export.callback(context, path, **options)
    return archive.Archive.open(path)


# -- tables ----------------------------------------------------------------------------------------------------------


def test_the_list_has_a_line_per_session_and_nothing_is_written(redis_url, capsys):
    played = some(5, human={3})
    context, database = a_stored_run(redis_url, played)
    database.append([b"no session"])
    database.report(update=37)
    before = everything(database)
    sessions.ls.callback(context, limit=3, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("sequence") for row in rows] == [3, 4, None] and "header claims" in rows[2]["error"]
    assert [row.get("human") for row in rows] == [True, False, None] and rows[0]["lag"] == 7
    assert rows[0]["reward"] == played[3].rewards[played[3].valid].sum()
    assert rows[0]["episodes"] == [total for total, _ in played[3].episodes]
    assert [row["id"] for row in rows] == [key for key, _ in before[2][-3:]]
    sessions.ls.callback(context, human=True)
    text = capsys.readouterr().out
    assert all(row["id"] in text for row in rows[::2])  # whole, for copying
    assert "cannot be read" in text and "6 sessions of run" in text
    sessions.show.callback(context, rows[0]["id"])
    assert everything(database) == before


def test_a_session_is_shown_step_by_step(redis_url, capsys):
    session = some(3)[1]
    context, database = a_stored_run(redis_url, [session])
    (key, _), *_ = database.read("0-0", 1)[0]
    sessions.show.callback(context, key, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["id"] == key and shown["metadata"] == session.metadata
    assert [row["reward"] for row in shown["rows"]] == session.rewards.tolist()
    assert [row["action"] for row in shown["rows"]] == session.actions.tolist()
    ends = ["reset" if not a else "terminated" if t else "truncated" if u else ""
            for a, t, u in zip(session.valid, session.terminated, session.truncated, strict=True)]  # fmt: skip
    assert [row["end"] for row in shown["rows"]] == ends and {"reset"} < set(ends)
    sessions.show.callback(context, None)  # the newest
    assert "terminated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "says"), [("x", "no session's id"), ("1-2-3", "no session's id"), ("1-0", "has no session 1-0")]
)
def test_an_id_that_leads_nowhere_is_said_so(redis_url, key, says):
    context, _ = a_stored_run(redis_url, some(1))
    with pytest.raises(SettingsError, match=says):
        sessions.show.callback(context, key)


def test_what_is_not_there_is_said_so(redis_url):
    context, _ = a_stored_run(redis_url)
    with pytest.raises(SettingsError, match="has no session yet"):
        sessions.show.callback(context, None)
    with pytest.raises(DatabaseError, match="there is no run nobody"):
        sessions.ls.callback(RunContext("x.py", name="nobody", redis=redis_url))


# -- films -----------------------------------------------------------------------------------------------------------


def test_a_film_has_a_frame_per_observation(redis_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context, _ = a_stored_run(redis_url, some(2))
    sessions.video.callback(context, None)
    (path,) = Path("records").iterdir()
    video = cv2.VideoCapture(str(path))
    assert sum(iter(lambda: video.read()[0], False)) == LENGTH + 1
    assert path.name.startswith(f"{context.run}-") and path.suffix == ".webm"


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_export_and_import_bring_back_every_bit(redis_url, tmp_path, nested, monkeypatch):
    monkeypatch.setattr(archive, "SHARD_SESSIONS", 4)
    played = some(10, nested, human={2, 5})
    context, database = a_stored_run(redis_url, played, nested)
    found = exported(context, tmp_path / "d" / "all.json")
    assert len(found) == 10 and [len(shard["sessions"]) for shard in found.shards] == [4, 4, 2]
    there, other = a_stored_run(redis_url, nested=nested)
    sessions.import_.callback(there, found.path)
    wanted, got = ([blob for _, blob in each.read("0-0", 100)[0]] for each in (database, other))
    assert got == wanted == [session.encode() for session in played]
    assert other.state().inserted == 10

    again = exported(there, tmp_path / "again.json")
    for one, two in zip(found.shards, again.shards, strict=True):
        assert found.path.with_name(one["file"]).read_bytes() == again.path.with_name(two["file"]).read_bytes()


def test_only_people_and_only_the_newest(redis_url, tmp_path):
    context, _ = a_stored_run(redis_url, some(10, human={2, 5, 9}))
    humans = [session.metadata["sequence"] for _, session in exported(context, tmp_path / "h.json", human=True)]
    newest = [session.metadata["sequence"] for _, session in exported(context, tmp_path / "n.json", limit=3)]
    assert (humans, newest) == (["2", "5", "9"], ["7", "8", "9"])


def test_any_tool_opens_a_shard(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "compress", lambda blob: blob)
    played = some(4)
    context, _ = a_stored_run(redis_url, played)
    exported(context, tmp_path / "all.json")
    arrays = load_file(tmp_path / "all-00000.safetensors")
    np.testing.assert_array_equal(arrays["observations"], np.stack([each.observations for each in played]))


def test_hdf5_holds_every_field(redis_url, tmp_path):
    h5py = pytest.importorskip("h5py")
    played = some(4, human={1})
    context, _ = a_stored_run(redis_url, played)
    sessions.export.callback(context, tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        for name, array in played[2].arrays.items():
            np.testing.assert_array_equal(file[name][2], array)
            assert file[name].dtype == array.dtype
        assert [json.loads(text) for text in file["metadata"].asstr()] == [each.metadata for each in played]
        assert json.loads(file.attrs["run"]) == context.run
    sessions.export.callback(context, tmp_path / "one.h5", human=True)
    with h5py.File(tmp_path / "one.h5") as file:
        assert len(file["metadata"]) == 1
    with pytest.raises(SettingsError, match="is there already"):
        sessions.export.callback(context, tmp_path / "all.h5")
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
    context, _ = a_stored_run(redis_url, some(4))
    path = exported(context, tmp_path / "all.json").path
    damage(path)
    there, other = a_stored_run(redis_url)
    with pytest.raises(error, match=says):
        sessions.import_.callback(there, path)
    assert other.size()["sessions"] == 0


def test_sessions_of_another_game_are_refused_in_one_sentence(redis_url, tmp_path):
    context, _ = a_stored_run(redis_url, some(4))
    path = exported(context, tmp_path / "all.json").path
    there, other = a_stored_run(redis_url, spec=a_spec(length=LENGTH + 1))
    says = rf"all.json does not fit run {there.run}: session\.observations is int32 \(6, 3\), this run's sessions have int32 \(7, 3\)"
    with pytest.raises(SpecError, match=says):
        sessions.import_.callback(there, path)
    nan = SessionSpec(a_spec().fields)
    bad = some(2)
    bad[1].rewards[0] = np.nan
    archive.write(tmp_path / "bad.json", [("1-0", bad[0]), ("2-0", bad[1])], nan, {})
    there, other = a_stored_run(redis_url)
    with pytest.raises(SpecError, match="session 2-0 of .*bad.json cannot be imported: session.rewards holds NaN"):
        sessions.import_.callback(there, tmp_path / "bad.json")
    assert other.size()["sessions"] == 0


def test_an_export_overwrites_nothing_and_is_a_json(redis_url, tmp_path):
    context, _ = a_stored_run(redis_url, some(1))
    exported(context, tmp_path / "a.json")
    with pytest.raises(SettingsError, match="is there already"):
        exported(context, tmp_path / "a.json")
    with pytest.raises(SettingsError, match=r"not 'a\.pt': call it .*a\.json"):
        exported(context, tmp_path / "a.pt")


def test_no_imported_session_overtakes_its_players_last(redis_url, tmp_path):
    played = [dataclasses.replace(one, metadata={**one.metadata, "player": f"play-{n % 7}", "sequence": str(n // 7)})
              for n, one in enumerate(some(21))]  # fmt: skip
    context, _ = a_stored_run(redis_url, played)
    path = exported(context, tmp_path / "all.json").path
    there, other = a_stored_run(redis_url)
    trainer = a_trainer(other, flow=ReplayConfig(batch_size=3, buffer_size=50))
    trainer.join()
    sessions.import_.callback(there, path)
    while trainer.feed():
        pass
    assert trainer.feeder.rejected == {} and len(trainer.replay) == 21


def test_an_import_comes_in_bounded_parts_and_waits_for_a_trainer_at_work(redis_url, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "AT_ONCE", 3)
    context, _ = a_stored_run(redis_url, some(8))
    path = exported(context, tmp_path / "all.json").path
    there, other = a_stored_run(redis_url)
    other.report(reuse=1.0, max_ahead=2.0)
    other.beat(Worker("train-1", "train"))
    pushes = threading.Thread(target=sessions.import_.callback, args=(there, path), daemon=True)
    pushes.start()
    until(lambda: other.state().inserted == 3)
    time.sleep(0.3)
    assert other.state().inserted == 3
    other.report(sampled=3)
    until(lambda: other.state().inserted == 6)
    other.leave("train-1")  # nobody to wait for
    pushes.join(60)
    assert other.state().inserted == 8


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["ls", "-n", 5, "--human", "--json"], {"limit": 5, "human": True, "as_json": True}),
        (["show", "1-0", "--values"], {"key": "1-0", "values": True, "as_json": False}),
        (["show"], {"key": None, "values": False, "as_json": False}),
        (["video", "1-0", "--fps", 5], {"key": "1-0", "fps": 5.0}),
        (["import", "a.json"], {"file": Path("a.json")}),
    ],
)
def test_the_commands_take_what_was_asked(tinyverse, monkeypatch, words, options):
    calls = swap_with_spy(monkeypatch, sessions.sessions.commands[words[0]], "callback")
    assert tinyverse("catch", "sessions", *words).code == 0
    (((context,), named),) = calls
    assert (context.experiment, named) == ("catch", options)


def test_sessions_are_exported_and_imported_by_the_command(run: Tinyverse, tinyverse: Tinyverse) -> None:
    run("train", "--minutes", 0, "-q")
    run("play", "-n", 2, "-b", 3, "-q")
    name = ["--name", run.name]  # type: ignore[attr-defined]
    assert tinyverse("catch", "sessions", "export", "a.json", *name).out == "6 sessions, shards: 1, index: a.json\n"
    assert "6 sessions imported into run" in tinyverse("catch", "sessions", "import", "a.json", *name).out
    assert len(json.loads(tinyverse("catch", "sessions", "ls", "--json", *name).out)) == 12
    assert "--human" in tinyverse("catch", "play", "--human", "-b", 2, *name).err
    assert tinyverse("catch", "play", "--fps", 5, *name).code == 2
