"""Resume: what a trainer keeps over its end, so that going on equals not having stopped."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from tests.helpers.people import LENGTH, a_player, a_spec, a_trainer
from tinyverse.core import rng
from tinyverse.core.errors import RunConflict, TinyverseError
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay import files
from tinyverse.replay.buffer import Replay
from tinyverse.replay.checkpoint import kept_slots, restore, sessions_of, state_of
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Mixed, Prioritized, Sampler, Uniform
from tinyverse.trainer.run_folder import RunFolder
from tinyverse.trainer.trainer import Trainer

torch.set_num_threads(1)

SAMPLERS = {"fresh": Fresh, "uniform": Uniform, "mixed": Mixed, "prioritized": Prioritized}


@pytest.fixture
def sessions():
    """48 sessions of the counting environment, all different."""
    player, _ = a_player(MemoryDatabase(), num_envs=1)
    player.version = player.update = 0
    return [player.play().sessions("p", number)[0] for number in range(48)]


def a_learning(database, path, sampler, *, size=30, reuse=None, **options):
    """A trainer whose learner surprises itself, so that priorities change."""
    flow = ReplayConfig(batch_size=2, buffer_size=size, reuse=reuse)
    trainer = a_trainer(database, sampler=SAMPLERS[sampler](), flow=flow, folder=RunFolder(path), **options)
    learn = trainer.learner.train_step

    def surprised(batch):
        noise = torch.rand(len(batch.slots)) + float(np.random.rand())
        return {**learn(batch), "priorities": batch.slots % 7 + noise}

    trainer.learner.train_step = surprised
    return trainer


def go_on(trainer, sessions, updates):
    """Feeds two sessions and makes an update, so often; the sessions learned from, and their importance weights."""
    for number in range(updates):
        trainer.database.append([session.encode() for session in sessions[2 * number : 2 * number + 2]])
        trainer.feed()
        assert trainer.step(), trainer.waiting.reason
    return [(batch.observations[0, :, :2].tolist(), batch.weights.tolist()) for batch in trainer.learner.batches]


def steps(sessions):
    """Agent steps in these sessions: resets are none."""
    return sum(int(session.valid.sum()) for session in sessions)


def ended(trainer):
    """All that a trainer carries, as one comparable thing."""
    replay = trainer.replay
    of_this_database = ("series", "positions", "newest_delivered", "received", "_delivered")
    books = {name: value for name, value in state_of(replay).items() if name not in of_this_database}
    owed = (replay.config.reuse or 1.0) * replay.limiter.inserted - replay.limiter.sampled
    return (
        trainer.update, trainer.feeder.steps, trainer.feeder.episodes, list(trainer.feeder.returns), list(trainer.feeder.lengths),
        trainer.agent.weight.tolist(), owed, str(replay.random.bit_generator.state), str(books), str(rng.get_state()["torch"].tolist()),
        rng.get_state()["python"], rng.get_state()["numpy"],
    )  # fmt: skip


@pytest.mark.parametrize("other_database", [False, True], ids=["same database", "empty database"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_twenty_updates_are_ten_and_ten(tmp_path, sessions, sampler, other_database):
    saw, ends = [], []
    for interrupted in (False, True):
        rng.seed(7)
        database, path = MemoryDatabase(), tmp_path / str(interrupted)
        trainer = a_learning(database, path, sampler)
        trainer.join()
        trainer.feed()
        seen = go_on(trainer, sessions[:20], 10)
        if interrupted:
            trainer.leave()
            rng.seed(8)  # what is restored must win
            database = MemoryDatabase() if other_database else database
            trainer = a_learning(database, path, sampler)
            trainer.replay.random = np.random.default_rng(99)
            trainer.join()
            seen += go_on(trainer, sessions[20:40], 10)
        else:
            seen = go_on(trainer, sessions[20:40], 10)
        saw.append(seen)
        ends.append(ended(trainer))
    assert saw[0] == saw[1]
    assert ends[0] == ends[1]


def pair(path, sessions, sampler, *, then="uniform", size=30, reuse=None, **options):
    """A trainer that made five updates with ten sessions and left, and one that took its place."""
    database = MemoryDatabase()
    first = a_learning(database, path, sampler, reuse=reuse, **options)
    first.join()
    first.feed()
    go_on(first, sessions[:10], 5)
    first.leave()
    second = a_learning(database, path, then, size=size, reuse=reuse)
    second.join()
    return first, second


def openings(trainer):
    """(episode, step) that open the sessions in memory, oldest first."""
    replay = trainer.replay
    slots = torch.from_numpy(kept_slots(replay))
    return replay.ring.take(slots)["observations"][:, 0, :2].tolist()


@pytest.mark.parametrize("size", [4, 10, 100])
def test_a_memory_of_another_size_takes_the_newest(tmp_path, sessions, size):
    for sampler in ("uniform", "prioritized"):
        first, second = pair(tmp_path / sampler, sessions, sampler, then=sampler, size=size)
        assert openings(second) == openings(first)[-size:]
        if sampler == "prioritized":
            before, now = (each.replay.sampler.state_dict()["priorities"].tolist() for each in (first, second))
            assert now == before[-size:]
        go_on(second, sessions[10:30], 5)
        assert len(second.replay) == min(size, 20)


def test_for_another_sampler_what_was_delivered_is_not_fresh(tmp_path, sessions):
    first, second = pair(tmp_path, sessions, "uniform", then="fresh")
    used = state_of(first.replay)["counts"] > 0
    assert second.replay.sampler.pending() == (~used).sum() > 0


@pytest.mark.parametrize("sampler", ["fresh", "mixed"])
def test_only_what_may_still_be_drawn_is_kept(tmp_path, sessions, sampler):
    database = MemoryDatabase()
    first = a_learning(database, tmp_path, sampler)
    first.join()
    first.feed()
    go_on(first, sessions[:4], 2)
    database.append([session.encode() for session in sessions[4:7]])
    first.feed()
    first.leave()
    stored = sum(len(file["numbers"]) for file in first.folder.load()["sessions"])
    assert stored == {"fresh": 3, "mixed": 7}[sampler]
    second = a_learning(database, tmp_path, sampler)
    second.join()
    second.feed()
    assert second.replay.sampler.pending() == first.replay.sampler.pending()
    assert second.feeder.steps == first.feeder.steps == steps(sessions[:7])
    assert database.state().sampled == first.replay.limiter.sampled


def test_what_lost_updates_had_learned_from_is_not_fresh_again(tmp_path, sessions):
    database = MemoryDatabase()
    first = a_learning(database, tmp_path, "fresh")
    first.join()
    first.feed()
    go_on(first, sessions[:2], 1)
    database.append([session.encode() for session in sessions[2:8]])
    first.feed()
    first.save(wait=True)  # six wait
    assert first.step() and first.step()  # and then it is killed
    database.release_lease(first.publisher.holder)
    second = a_learning(database, tmp_path, "fresh")
    second.join()
    second.feed()
    assert second.update == 1
    assert go_on(second, [], 1) == [([list(s.observations[0, :2]) for s in sessions[6:8]], [1.0, 1.0])]
    assert not second.step()
    assert second.feeder.steps == steps(sessions[:8])  # each counted once


def test_with_uniform_replay_what_was_owed_is_still_owed_and_no_more(tmp_path, sessions):
    """10 sessions of reuse 2, 3 updates of 2: 14 deliveries are left. A restart waits for no new session, and forgets
    none of them; 5 that came meanwhile owe 10 more."""
    database = MemoryDatabase()
    first = a_learning(database, tmp_path, "uniform", reuse=2.0)
    first.join()
    first.feed()
    database.append([session.encode() for session in sessions[:10]])
    first.feed()
    assert [first.step() for _ in range(3)] == [True] * 3
    first.leave()
    database.append([session.encode() for session in sessions[10:15]])
    second = a_learning(database, tmp_path, "uniform", reuse=2.0)
    second.join()
    second.feed()
    assert len(second.replay) == 15
    made = 0
    while second.step():
        made += 1
    assert made == (14 + 10) // 2
    assert database.state().deficit == 0
    assert second.feeder.steps == steps(sessions[:15])


def test_without_the_replay_stored_sessions_are_settled(tmp_path, sessions):
    first, second = pair(tmp_path, sessions, "uniform", reuse=3.0, save_replay=False)
    assert first.folder.load()["replay"] is None and not (tmp_path / "replay").exists()
    second.feed()
    assert len(second.replay) == 10  # read from the database again
    assert not second.step() and "more session (reuse 3 is reached)" in second.waiting.reason


def test_a_large_replay_is_left_out_unless_wanted(tmp_path, sessions, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.trainer.checkpoint.REPLAY_SAVED", 1000)
    for wanted in (None, True):
        first, _ = pair(tmp_path / str(wanted), sessions, "uniform", save_replay=wanted)
        assert (first.folder.load()["replay"] is not None) == bool(wanted)
    assert caplog.text.count("checkpoints leave them out, unless --save-replay") == 1


def test_sessions_of_another_shape_are_left_out(tmp_path, sessions, caplog):
    pair(tmp_path, sessions, "uniform")
    other = a_trainer(MemoryDatabase(), sampler=Uniform(), folder=RunFolder(tmp_path), length=LENGTH + 1)
    other.join()
    assert other.update == 5 and len(other.replay) == 0
    assert "of another shape" in caplog.text


def test_a_checkpoint_that_does_not_fit_is_one_sentence(tmp_path, sessions):
    pair(tmp_path, sessions, "uniform")
    other = a_trainer(MemoryDatabase(), folder=RunFolder(tmp_path))

    def misfit(state):
        raise RuntimeError("size mismatch for weight:\n a lot more")

    other.learner.load_state_dict = misfit
    with pytest.raises(RunConflict, match=r"does not fit .*size mismatch for weight: ….*--fresh") as error:
        other.join()
    assert "\n" not in str(error.value)


def test_a_sampler_of_the_users_own_is_told_again(tmp_path, sessions):
    class Newest(Sampler):
        def __init__(self):
            self.told = []

        def insert(self, slot, seen=False, human=False):
            self.told.append((slot, seen, human))

        def remove(self, slot):
            pass

        def missing(self, batch):
            return max(0, batch - len(self.told))

        def draw(self, batch, random):
            return np.array([slot for slot, *_ in self.told[-batch:]])

    spec, flow = a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None)
    first, second = Replay(spec, flow, Newest()), Replay(spec, flow, Newest())
    sessions[1].metadata["human"] = "1"
    for session in sessions[:5]:
        first.add(session)
    first.sample()
    state = state_of(first)
    given = sessions_of(first, state)
    restore(second, state, [(given.numbers, given.read(given.numbers)[0])])
    played = [(0, False, False), (1, False, True), (2, False, False), (3, True, False), (4, True, False)]
    assert second.sampler.told == played
    assert second.sample().human.tolist() == [False, False]


# -- the files ------------------------------------------------------------------------------------------------------


def saved(replay, folder, update):
    """Saves, and returns how many sessions each file of the checkpoint holds."""
    state = state_of(replay)
    folder.save(update, {"update": update, "replay": state}, sessions_of(replay, state))
    return [len(file["numbers"]) for file in folder.load()["sessions"]]


def restored(folder, **flow):
    contents = folder.load()
    replay = Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None, **flow), Uniform())
    restore(replay, contents["replay"], folder.stored.read(contents["sessions"]))
    return replay


def test_each_session_is_written_once_and_files_go_with_their_sessions(tmp_path, sessions):
    folder, replay = (
        RunFolder(tmp_path),
        Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None), Uniform()),
    )
    held = []
    for update in range(5):
        for session in sessions[3 * update : 3 * update + 3]:
            replay.add(session)
        held.append(saved(replay, folder, update))
        assert len(list(folder.stored.path.iterdir())) == len(held[-1])
        again = restored(RunFolder(tmp_path))
        assert again.ring.bytes[kept_slots(again)].equal(replay.ring.bytes[kept_slots(replay)])
    assert held == [[3], [3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert len(list(folder.checkpoints.iterdir())) == 3


def test_a_resumed_trainer_writes_only_what_is_new(tmp_path, sessions):
    folder, replay = (
        RunFolder(tmp_path),
        Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None), Uniform()),
    )
    for session in sessions[:5]:
        replay.add(session)
    saved(replay, folder, 1)
    folder = RunFolder(tmp_path)
    replay = restored(folder)
    replay.add(sessions[5])
    assert saved(replay, folder, 2) == [5, 1]


def test_sessions_written_over_meanwhile_are_left_out(tmp_path, sessions):
    folder, replay = (
        RunFolder(tmp_path),
        Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None), Uniform()),
    )
    for session in sessions[:8]:
        replay.add(session)
    state = state_of(replay)
    for session in sessions[8:11]:
        replay.add(session)
    folder.save(1, {"update": 1, "replay": state}, sessions_of(replay, state))
    again = restored(folder)
    assert again.slots.numbers(kept_slots(again)).tolist() == [3, 4, 5, 6, 7]
    assert again.sampler.slots and set(again.sampler.slots) == {3, 4, 5, 6, 7}


@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_damaged_sessions_are_left_out_and_the_rest_is_taken(tmp_path, sessions, damage, caplog):
    folder, replay = (
        RunFolder(tmp_path),
        Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None), Uniform()),
    )
    for session in sessions[:3]:
        replay.add(session)
    saved(replay, folder, 1)
    (victim,) = folder.stored.path.iterdir()
    for session in sessions[3:5]:
        replay.add(session)
    saved(replay, folder, 2)
    data = bytearray(victim.read_bytes())
    data[100] ^= 1
    victim.unlink() if damage == "gone" else victim.write_bytes(data[:50] if damage == "short" else data)
    again = restored(RunFolder(tmp_path))
    assert again.slots.numbers(kept_slots(again)).tolist() == [3, 4]
    assert "stored sessions are left out" in caplog.text


@pytest.mark.parametrize("where", ["rows", "sessions written", "checkpoint"])
def test_a_kill_at_any_moment_of_a_save_leaves_the_one_before(tmp_path, sessions, where, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    folder, replay = (
        RunFolder(tmp_path),
        Replay(a_spec(), ReplayConfig(batch_size=2, buffer_size=8, reuse=None), Uniform()),
    )
    for session in sessions[:8]:
        replay.add(session)
    saved(replay, folder, 1)
    before = replay.ring.bytes[kept_slots(replay)]
    for session in sessions[8:20]:
        replay.add(session)
    with monkeypatch.context() as patch:
        if where == "rows":
            patch.setattr(os, "fsync", die)
        else:
            patch.setattr(torch, "save", die) if where == "sessions written" else patch.setattr(
                files.StoredSessions, "keep_only", die
            )
        with pytest.raises(Killed):
            saved(replay, folder, 2)
    again = RunFolder(tmp_path)
    kept = restored(again)
    if where == "checkpoint":
        before = replay.ring.bytes[kept_slots(replay)]
    assert kept.ring.bytes[kept_slots(kept)].equal(before)
    saved(kept, again, 3)  # and what the killed one left behind goes
    assert {path.name for path in again.stored.path.iterdir()} == {file["name"] for file in again.load()["sessions"]}


# -- beside learning ------------------------------------------------------------------------------------------------


def test_a_save_does_not_wait_for_the_disk(tmp_path, sessions, monkeypatch):
    may_write, writes = threading.Event(), []
    write = RunFolder._write

    def slowly(folder, path, *rest):
        writes.append(path.name)
        assert may_write.wait(10)
        write(folder, path, *rest)

    monkeypatch.setattr(RunFolder, "_write", slowly)
    trainer = a_learning(MemoryDatabase(), tmp_path, "uniform")
    trainer.join()
    trainer.feed()
    go_on(trainer, sessions[:2], 1)
    trainer.save()
    go_on(trainer, sessions[2:4], 1)
    trainer.save()  # the first is still being written: next time
    assert trainer.folder.load() is None and writes == ["update-000000001.pt"]
    may_write.set()
    trainer.folder.finish()
    assert (trainer.folder.load()["update"], trainer.folder.load()["learner"]["weight"]) == (1, 1)
    trainer.leave()
    assert trainer.folder.load()["update"] == 2


def test_a_full_disk_is_said_and_training_goes_on(tmp_path, sessions, monkeypatch, caplog):
    trainer: Trainer = a_learning(MemoryDatabase(), tmp_path, "uniform")
    trainer.join()
    trainer.feed()
    go_on(trainer, sessions[:2], 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        trainer.save()
        trainer.folder.finish()
        assert "No space left on device" in caplog.text and "Training goes on" in caplog.text
        with pytest.raises(TinyverseError, match=r"no checkpoint of update 1 could be written: .*No space"):
            trainer.leave()
        assert trainer.database.acquire_lease("another")  # it left all the same
    assert not list(trainer.folder.checkpoints.iterdir())
    trainer.save(wait=True)
    assert trainer.folder.load()["update"] == 1


def test_the_feeder_may_add_while_a_checkpoint_is_made(tmp_path, sessions):
    """Every checkpoint of many holds each session up to its cursor, and none after it."""
    database = MemoryDatabase()
    trainer = a_learning(database, tmp_path, "uniform", size=50)
    trainer.join()
    trainer.feed()
    database.append([session.encode() for session in sessions])

    def feed():
        for session_id, blob in database.read("0-0", 100)[0]:
            trainer.feeder.take(session_id, blob)

    feeder = threading.Thread(target=feed)
    feeder.start()
    while feeder.is_alive():
        contents = trainer.checkpoints.contents()
        taken = int(contents["position"].split("-")[0])
        assert len(contents["replay"]["numbers"]) == taken
        assert contents["step"] == steps(sessions[:taken])
    feeder.join()
