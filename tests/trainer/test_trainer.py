"""Trainer: what it learned it keeps, what it publishes is true, and neither rivals nor an empty server confuse it."""

from __future__ import annotations

import dataclasses
import logging
import threading

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, Beside, CountingLearner, Flaky, a_player, a_run, a_trainer, until
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.vtrace import VTrace
from tinyverse.core import codec, distributed
from tinyverse.core.errors import DatabaseError, DatabaseLost, LeaseLost, SettingsError
from tinyverse.core.run_config import run_config
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import DAMAGED
from tinyverse.database.connection import connect
from tinyverse.database.memory import MemoryDatabase
from tinyverse.database.redis import RedisDatabase
from tinyverse.envs.pool import SerialPool
from tinyverse.experiment.experiment import session_spec
from tinyverse.networks import MLP, ModularNetwork
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Uniform
from tinyverse.trainer import feeder as feeder_module
from tinyverse.trainer.loop import publishing_thread, train
from tinyverse.trainer.publisher import Snapshot
from tinyverse.trainer.ranks import Ranks, SingleProcess
from tinyverse.trainer.run_folder import RunFolder
from tinyverse.trainer.trainer import Trainer

torch.set_num_threads(1)


@pytest.fixture
def database():
    return MemoryDatabase()


def some_sessions(count, *, player="p", start=0, num_envs=1, update=0):
    """Sessions of a counting environment as a player would have pushed them."""
    one, _ = a_player(MemoryDatabase(), num_envs=num_envs)
    one.version = one.update = update
    return [session for n in range(count) for session in one.play().sessions(player, start + n * num_envs)]


def push(database, sessions):
    for session in sessions:
        database.append([session.encode()])


def saw(learner):
    """(episode, step) that open the slices learned from, in order."""
    return [tuple(batch.observations[0, b, :2].tolist()) for batch in learner.batches for b in range(len(batch.slots))]


def opening(session):
    return tuple(session.observations[0, :2].tolist())


# -- keeping what was learned ---------------------------------------------------------------------------------------


def test_a_resumed_trainer_goes_on_where_its_checkpoint_is(database, tmp_path):
    folder = RunFolder(tmp_path)
    trainer = a_trainer(database, folder=folder)
    trainer.join()
    push(database, some_sessions(6))
    trainer.feed()
    assert [trainer.step() for _ in range(4)] == [True, True, True, False]
    assert "2 more new sessions" in trainer.waiting.reason
    trainer.publish(trainer.snapshot())
    trainer.leave()
    again = a_trainer(database, folder=folder)
    again.join()
    assert (again.update, again.feeder.steps, again.feeder.episodes) == (
        3,
        trainer.feeder.steps,
        trainer.feeder.episodes,
    )
    assert list(again.feeder.returns) == list(trainer.feeder.returns)
    assert again.agent.weight == 3
    assert again.version == trainer.version + 1
    again.feed()
    assert not again.step()  # Fresh: all were learned from
    push(database, some_sessions(2, start=6))
    again.feed()
    assert again.step()
    assert again.update == 4


@pytest.mark.parametrize(("ahead", "expected"), [("checkpoint", 41), ("database", 8)])
def test_versions_only_grow_over_a_resume(database, tmp_path, ahead, expected):
    folder = RunFolder(tmp_path)
    first = a_trainer(database, folder=folder)
    first.join()
    first.publisher.version = 40 if ahead == "checkpoint" else 2
    first.update = 5
    first.save()
    if ahead == "database":
        first.publish(Snapshot(7, 5, 0, {}))
    first.leave()
    second = a_trainer(database, folder=folder)
    second.join()
    assert second.version == expected
    assert database.state().version == expected
    assert (second.update, second.state.version) != (0, -1)


def test_without_a_folder_it_goes_on_from_what_was_published(database):
    first = a_trainer(database)
    first.join()
    push(database, some_sessions(2))
    first.feed()
    assert first.step()
    first.publish(first.snapshot())
    first.leave()
    second = a_trainer(database)
    second.join()
    assert (second.update, second.feeder.steps, second.version) == (1, first.feeder.steps, first.version + 1)
    assert second.agent.weight == 1


class SmallNumbers(CountingEnv):
    """The counting environment with a float observation."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)

    def _observation(self):
        return np.array([self.episode % 5, self.now], np.float32)


def a_network_trainer(database, folder=None):
    env = SmallNumbers()
    torch.manual_seed(0)
    agent = TorchAgent(ModularNetwork(env.observation_space, env.action_space, trunk=MLP(8)))
    spec = session_spec(env.observation_space, env.action_space, agent, LENGTH)
    learner = VTrace(agent, learning_rate=0.01, optimizer="adam", total_updates=30)
    replay = Replay(spec, ReplayConfig(batch_size=2, buffer_size=50), Fresh())
    return Trainer(agent, learner, replay, database, run_config("small", {}, spec), folder=folder)


def network_sessions(count):
    agent = a_network_trainer(MemoryDatabase()).agent
    player = Player(agent, SerialPool(SmallNumbers, 1), LENGTH)
    player.version = 0
    return [session for n in range(count) for session in player.play().sessions("p", n)]


def test_learning_goes_on_after_a_resume_as_if_never_interrupted(tmp_path):
    sessions = network_sessions(20)
    ends = []
    for interrupted in (False, True):
        database, folder = MemoryDatabase(), RunFolder(tmp_path / str(interrupted))
        trainer = a_network_trainer(database, folder)
        trainer.join()
        for number, session in enumerate(sessions):
            push(database, [session])
            trainer.feed()
            trainer.step()
            if interrupted and number % 6 == 5:
                trainer.leave()
                trainer = a_network_trainer(database, folder)
                with torch.no_grad():
                    trainer.agent.network.value.linear.weight.add_(1.0)  # what is restored must win
                trainer.join()
        assert trainer.update == 10
        ends.append((trainer.learner.get_weights(), trainer.learner.optimizer.current_learning_rate))
    (straight, rate), (resumed, resumed_rate) = ends
    assert rate == resumed_rate == pytest.approx(0.01 * 2 / 3)
    for name in straight:
        np.testing.assert_array_equal(straight[name], resumed[name], name)
    fresh = a_network_trainer(MemoryDatabase()).learner.get_weights()
    assert any((fresh[name] != straight[name]).any() for name in fresh)


def test_a_kill_between_report_and_update_loses_that_batch_and_repeats_none(database):
    sessions = some_sessions(8)

    class Killed(BaseException):
        pass

    first = a_trainer(database)
    first.join()
    push(database, sessions)
    first.feed()
    assert first.step()

    def die(batch):
        raise Killed

    first.learner.train_step = die
    with pytest.raises(Killed):
        first.step()
    database.release_lease(first.publisher.holder)  # what the server does when the process is gone
    second = a_trainer(database)
    second.join()
    second.feed()
    while second.step():
        pass
    assert saw(first.learner) == [opening(session) for session in sessions[:2]]
    assert saw(second.learner) == [opening(session) for session in sessions[4:]]
    state = database.state()
    assert state.deficit == 0  # what was lost is owed to nobody


def test_uniform_reads_everything_again_but_counts_steps_once(database):
    flow = ReplayConfig(batch_size=2, buffer_size=50, reuse=1.0)
    first = a_trainer(database, sampler=Uniform(), flow=flow)
    first.join()
    first.feed()  # what comes from here on is new
    push(database, some_sessions(10))
    first.feed()
    while first.step():
        pass
    assert first.update == 5
    first.publish(first.snapshot())
    first.leave()
    second = a_trainer(database, sampler=Uniform(), flow=flow)
    second.join()
    second.feed()
    assert len(second.replay) == 10
    assert (second.update, second.feeder.steps) == (5, first.feeder.steps)
    assert not second.step()  # reuse is reached already
    push(database, some_sessions(2, start=10))
    second.feed()
    assert second.step()


# -- what comes from the database -----------------------------------------------------------------------------------


def test_duplicates_and_damaged_sessions_are_counted_and_training_goes_on(database, caplog):
    trainer = a_trainer(database)
    trainer.join()
    good = some_sessions(6)
    nan = dataclasses.replace(good[0], arrays={**good[0].arrays, "rewards": np.full(LENGTH, np.nan, np.float32)})
    longer, _ = a_player(MemoryDatabase(), num_envs=1, length=9)
    stranger = longer.play().sessions("q", 0)[0]
    nameless = dataclasses.replace(good[0], metadata={"player": "p"})
    bad = [b"", DAMAGED, b"junk" * 100, good[0].encode()[:-3], nan.encode(), stranger.encode(), nameless.encode()]
    push(database, good[:3])
    database.append(bad)
    push(database, good[1:])  # the first two of these came before
    database.append([codec.compress(codec.encode({}, {}))])
    with caplog.at_level(logging.ERROR):
        trainer.feed()
    assert trainer.feeder.rejected["it came twice"] == 2
    assert sum(trainer.feeder.rejected.values()) == 2 + len(bad) + 1
    while trainer.step():
        pass
    assert saw(trainer.learner) == [opening(session) for session in good]
    assert any("checksum differs" in reason for reason in trainer.feeder.rejected)
    assert trainer.row()["replay/rejected"] == 10
    trainer.publisher.report(trainer.update)
    state = database.state()
    assert state.inserted == 16
    assert state.deficit == 0  # nobody waits for what was rejected


def test_the_same_numbers_of_another_player_are_no_duplicates(database):
    trainer = a_trainer(database)
    trainer.join()
    push(database, some_sessions(2, player="a") + some_sessions(2, player="b"))
    trainer.feed()
    assert trainer.feeder.rejected == {}
    assert len(trainer.replay) == 4


def test_players_are_told_how_far_they_may_go(database):
    trainer = a_trainer(database, flow=ReplayConfig(batch_size=2, buffer_size=40, min_sessions=4))
    trainer.join()
    state = database.state()
    assert (state.reuse, state.max_ahead, state.capacity, state.sampled) == (1.0, (4 + 2) * 1.0, 40, 0)
    push(database, some_sessions(3))
    trainer.feed()
    assert not trainer.step()
    assert trainer.waiting.reason == "3 of 4 sessions"
    push(database, some_sessions(1, start=3))
    trainer.feed()
    assert trainer.step()
    trainer.publisher.report(trainer.update)
    assert (database.state().sampled, database.state().update) == (2, 1)


def test_nothing_is_learned_before_the_stored_sessions_are_read(database):
    trainer = a_trainer(database)
    trainer.join()
    assert not trainer.step()
    assert trainer.waiting.reason == "0 of 2 sessions"  # none are stored
    trainer.leave()
    push(database, some_sessions(2))
    trainer = a_trainer(database)
    trainer.join()
    assert not trainer.step()
    assert trainer.waiting.reason == "the stored sessions to be read"


# -- the lease ------------------------------------------------------------------------------------------------------


def another_place(trainer):
    """As if the trainer were on another machine, where nobody can see whether its process lives."""
    trainer.publisher.holder = "elsewhere:1:" + trainer.worker.id
    return trainer


def test_a_second_trainer_waits_until_the_first_leaves(redis_url, monkeypatch):
    monkeypatch.setattr("tinyverse.trainer.publisher.HEARTBEAT_SECONDS", 0.02)
    database = a_run(redis_url)
    first, second = (another_place(a_trainer(database)) for _ in range(2))
    first.join()
    with Beside(lambda should_stop: second.join(should_stop=should_stop)) as joining:
        until(lambda: any(w.waits_for.startswith("another trainer") for w in database.workers()))
        assert database.state().version == 0
        first.leave()
        joining.finish()
    assert second.version == 1
    assert second.waiting.reason == ""


@pytest.mark.parametrize("how", ["signal", "stop"])
def test_a_waiting_trainer_can_be_stopped(database, monkeypatch, how):
    monkeypatch.setattr("tinyverse.trainer.publisher.HEARTBEAT_SECONDS", 0.02)
    first, second = a_trainer(database), a_trainer(database)
    first.join()
    joining = Beside(lambda should_stop: second.join(should_stop=should_stop))
    joining.start()
    until(lambda: second.waiting.reason)
    database.ask_stop() if how == "stop" else joining.stop.set()
    with pytest.raises(SettingsError, match="waiting for another trainer"):
        joining.finish()
    assert database.state().version == 0


def test_a_stolen_lease_ends_training_and_nothing_is_published_after(redis_url, monkeypatch):
    monkeypatch.setattr("tinyverse.trainer.publisher.HEARTBEAT_SECONDS", 0.05)
    database = a_run(redis_url)
    trainer = another_place(a_trainer(database))
    trainer.join()
    task = Beside(lambda should_stop: train(trainer, should_stop=should_stop))
    task.start()
    until(lambda: len(database.workers()) == 1)
    database._client.set(database._keys.lease, "thief:1:x", px=60_000)
    version = database.state().version
    with pytest.raises(LeaseLost):
        task.finish()
    assert database.state().version == version
    with pytest.raises(LeaseLost):
        trainer.publish(trainer.snapshot())
    assert database._client.get(database._keys.lease) == b"thief:1:x"  # leaving did not free another's


def test_a_lease_lost_in_the_last_publication_is_raised(database, monkeypatch):
    trainer = a_trainer(database)
    trainer.join()

    def steal():
        database._holder = "thief:1:x"
        return True

    with pytest.raises(LeaseLost):
        train(trainer, should_stop=steal)
    assert database.state().version == 0


# -- publishing -----------------------------------------------------------------------------------------------------


def test_an_update_made_while_the_publisher_is_at_work_is_reported(database):
    trainer = a_trainer(database)
    trainer.join()
    trainer.update = 2
    trainer.publisher.offer(trainer.snapshot())  # it came after the publisher's turn, at update 1, had begun
    trainer.publisher.step(1)
    assert database.state().update == 2


def test_the_publisher_takes_the_newest_snapshot_and_versions_only_grow(database):
    trainer = a_trainer(database)
    trainer.join()
    published, gate, entered = [], threading.Event(), threading.Event()
    put = database.put_weights

    def slow(blob, version, **numbers):
        entered.set()
        assert gate.wait(10)
        published.append(version)
        put(blob, version, **numbers)

    database.put_weights = slow
    publisher, thread = trainer.publisher, publishing_thread(trainer)
    thread.start()
    publisher.offer(trainer.snapshot())
    assert entered.wait(10)
    for _ in range(20):
        publisher.offer(trainer.snapshot())
    gate.set()
    until(lambda: not publisher.unfinished)
    thread.close()
    assert thread.failure is None
    assert published == [1, 21]
    assert database.state().version == 21


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_publication_survives_a_lost_database(database, monkeypatch, when):
    """Also where it had arrived and only the answer was lost: publishing it again is no lost lease."""
    monkeypatch.setattr("tinyverse.trainer.loop.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("tinyverse.trainer.publisher.HEARTBEAT_SECONDS", 0.02)
    trainer = a_trainer(Flaky(database, "put_weights", **{when: {1, 2}}))
    trainer.join()
    publisher, thread = trainer.publisher, publishing_thread(trainer)
    thread.start()
    for version in (1, 2, 3):
        publisher.offer(trainer.snapshot())
        until(lambda: not publisher.unfinished or thread.failure)
        assert thread.failure is None
        assert database.state().version == version
    thread.close()


def test_a_reader_never_sees_weights_of_another_version(redis_url):
    """The weight is the update, so the blob itself says what it belongs to."""
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    reader = RedisDatabase(redis_url, database.run)

    def publish_on(should_stop):
        while not should_stop():
            trainer.update += 1
            trainer.agent.weight = np.array([trainer.update], np.float32)
            trainer.publish(trainer.snapshot())

    with Beside(publish_on):
        newest = -1
        while newest < 300:
            try:
                found = reader.get_weights(newer_than=newest)
            except DatabaseError:  # published faster than it could read, several times running
                continue
            if found is None:
                continue
            weights, numbers = decode_weights(found[1])
            assert found[0] > newest
            assert numbers["version"] == found[0]
            assert weights["weight"] == numbers["update"] == found[0]
            newest = found[0]
    state = reader.state()
    assert (state.version, state.update) == (trainer.version, trainer.update)


# -- the loop -------------------------------------------------------------------------------------------------------


def threads():
    return {thread.name for thread in threading.enumerate() if thread.name in ("feeder", "publisher", "uploader")}


@pytest.mark.parametrize("end", ["updates", "signal", "stop", "error"])
def test_training_ends_and_leaves_no_thread_behind(database, tmp_path, end):
    trainer = a_trainer(database, folder=RunFolder(tmp_path), publish_every=1)
    trainer.join()
    push(database, some_sessions(6))
    if end == "error":

        def fail(batch):
            raise ZeroDivisionError

        trainer.learner.train_step = fail
    task = Beside(lambda should_stop: train(trainer, updates=3 if end == "updates" else None, should_stop=should_stop))
    task.start()
    if end == "error":
        with pytest.raises(ZeroDivisionError):
            task.finish()
    else:
        until(lambda: trainer.update == 3)
        if end == "signal":
            task.stop.set()
        if end == "stop":
            database.ask_stop()
        assert task.finish() == 3
        assert trainer.folder.load()["update"] == 3
        weights, numbers = decode_weights(database.get_weights()[1])
        assert (weights["weight"], numbers["update"], database.state().update) == (3, 3, 3)  # the last weights are out
        assert trainer.folder.load()["version"] == database.state().version
    assert threads() == set()
    assert database.workers() == []
    assert database.acquire_lease("elsewhere:1:next")  # the lease is free


def test_a_failing_feeder_is_raised(database):
    trainer = a_trainer(Flaky(database, "nothing"))
    trainer.join()

    def refuse(wait):
        raise DatabaseError("no such command")

    trainer.feed = refuse
    with pytest.raises(DatabaseError, match="no such command"):
        run_out(lambda should_stop: train(trainer, should_stop=should_stop))
    assert threads() == set()


def run_out(function):
    task = Beside(function)
    task.start()
    return task.finish()


def test_training_survives_a_lost_database(database, monkeypatch, caplog):
    monkeypatch.setattr("tinyverse.trainer.loop.RETRY_SECONDS", 0.01)
    flaky = Flaky(database, "read", before={0, 1, 4}, after={2, 5})
    trainer = a_trainer(flaky)
    trainer.join()
    sessions = some_sessions(6)
    push(database, sessions)
    with caplog.at_level(logging.ERROR):
        made = run_out(lambda should_stop: train(trainer, updates=3, should_stop=should_stop))
    assert made == 3
    assert saw(trainer.learner) == [opening(session) for session in sessions]
    assert "gone" in trainer.worker.error or "never came" in trainer.worker.error


def flush(server):
    with connect(server.admin_url) as client:
        client.flushall()


def test_an_empty_server_is_filled_again_and_everyone_goes_on(redis_url, redis_server):
    database = a_run(redis_url)
    database.ask_stop()  # one of long ago
    trainer = a_trainer(database, flow=ReplayConfig(batch_size=2, buffer_size=50))
    trainer.join()
    player, uploader = a_player(RedisDatabase(redis_url, database.run))
    uploader.start()
    with (
        Beside(lambda should_stop: play(player, uploader, sync_every=3, should_stop=should_stop)) as playing,
        Beside(lambda should_stop: train(trainer, should_stop=should_stop)) as training,
    ):
        for _ in range(2):
            until(lambda: trainer.update > 5)
            version, update = trainer.version, trainer.update
            flush(redis_server)
            until(lambda: database.state().version > version)
            until(lambda: trainer.update > update + 5)
            assert database.meta()["experiment"] == "counting"
        database.ask_stop()
        training.finish()
        playing.finish()
    uploader.close()


@pytest.mark.parametrize("method", ["create", "acquire_lease", "report", "put_weights"])
def test_a_database_lost_while_the_run_is_made_again_is_no_deadlock(database, method):
    flaky = Flaky(database, method)
    trainer = a_trainer(flaky)
    trainer.join()
    trainer.feed()
    database._reset(keep_weights=False)
    trainer.feed()
    assert trainer.publisher.must_publish
    snapshot = trainer.snapshot()
    flaky.before, flaky.calls = {0}, 0
    with pytest.raises(DatabaseLost):
        trainer.publish(snapshot)
    trainer.publish(snapshot)
    assert database.state().version == trainer.version == 1
    push(database, some_sessions(2))
    trainer.feed()
    trainer.feed()
    assert trainer.step()


@pytest.mark.parametrize("thread", ["publisher", "late publisher", "drawing", "agreeing"])
def test_no_position_is_carried_over_into_a_new_epoch(monkeypatch, thread):
    """Whichever thread was at work with cursors when the feeder found the run gone and the publisher made it anew."""
    seen = []

    class Noting(MemoryDatabase):
        def _set(self, **numbers):
            super()._set(**numbers)
            seen.append((self._state.run_id, self._state.cursor))

    monkeypatch.setattr(CountingLearner, "distributed", True)
    ranks = Ranks() if thread == "agreeing" else SingleProcess()
    trainer = a_trainer(database := Noting(), ranks=ranks)
    trainer.join()
    push(database, some_sessions(4))
    trainer.feed()
    assert trainer.step() and seen[-1][1] == "2-0"
    snapshot = trainer.snapshot()

    def make_anew(should_stop):
        trainer.feed()
        trainer.publish(snapshot)
        trainer.feed()

    def gone():
        database._reset(keep_weights=False)
        feeder.start()
        feeder.join(0.3)  # while it waits for a lock, it does nothing

    called = []

    def before(function):
        """The function, called with what was known before the run was gone."""

        def late(*given, **named):
            monkeypatch.undo()
            called.append(function)
            gone()
            return function(*given, **named)

        return late

    feeder = Beside(make_anew)
    if thread == "publisher":
        database._reset(keep_weights=False)
        trainer.publisher.report(trainer.update)
        feeder.start()
    elif thread == "late publisher":
        monkeypatch.setattr(database, "report", before(database.report))
        trainer.publisher.report(trainer.update)
    else:
        place, name = {"drawing": (feeder_module, "furthest"), "agreeing": (distributed, "exchange")}[thread]
        monkeypatch.setattr(place, name, before(getattr(place, name)))
        trainer.step()
    feeder.finish()
    trainer.publisher.report(trainer.update)
    assert bool(called) == (thread != "publisher")
    assert database.state().run_id == trainer.state.run_id != ""
    assert {session_id for run_id, session_id in seen if run_id == database.state().run_id} == {"0-0"}


# -- numbers --------------------------------------------------------------------------------------------------------


def test_a_row_says_where_training_stands(database):
    trainer = a_trainer(database, frame_skip=4)
    trainer.join()
    assert trainer.row()["play/return"] is None
    sessions = some_sessions(4, update=0)
    push(database, sessions)
    trainer.feed()
    trainer.step()
    trainer.step()
    row = trainer.row()
    steps = sum(int(session.valid.sum()) for session in sessions)
    ended = [episode for session in sessions for episode in session.episodes]
    assert (row["update"], row["step"], row["frames"], row["version"]) == (2, steps, 4 * steps, 0)
    assert row["play/return"] == pytest.approx(np.mean([total for total, _ in ended]))
    assert row["play/length"] == pytest.approx(np.mean([length for _, length in ended]))
    assert row["play/episodes"] == len(ended)
    assert row["replay/sessions"] == 4
    assert row["replay/reuse"] == 1.0
    assert row["replay/lag"] == pytest.approx((0 + 1) / 2)  # the second batch was an update old
    assert row["loss/total"] == 0.5
    assert {"time/sample", "time/update"} <= row.keys()


def test_metrics_that_are_no_numbers_become_null(database):
    trainer = a_trainer(database)
    trainer.join()
    trainer.learner.metrics = {
        "loss/policy": float("nan"), "loss/value": torch.tensor(float("inf")), "loss/total": torch.tensor(2.0),
        "priorities": torch.ones(2),
    }  # fmt: skip
    push(database, some_sessions(2))
    trainer.feed()
    assert trainer.step()
    row = trainer.row()
    assert (row["loss/policy"], row["loss/value"], row["loss/total"]) == (None, None, 2.0)
    assert "priorities" not in row


def test_priorities_go_back_to_the_sampler(database):
    given = []

    class Noting(Uniform):
        def set_priorities(self, slots, priorities):
            given.append((slots.tolist(), priorities.tolist()))

    trainer = a_trainer(database, sampler=Noting(), flow=ReplayConfig(batch_size=2, buffer_size=9, reuse=1.0))
    trainer.join()
    trainer.learner.metrics = {"priorities": torch.tensor([3.0, 5.0])}
    trainer.feed()
    push(database, some_sessions(2))
    trainer.feed()
    assert trainer.step()
    assert given == [(trainer.learner.batches[0].slots.tolist(), [3.0, 5.0])]


def test_bf16_runs_the_update_under_autocast(database):
    dtypes = []

    class Watching(CountingLearner):
        def train_step(self, batch):
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().train_step(batch)

    for precision in ("fp32", "bf16"):
        trainer = a_trainer(MemoryDatabase(), precision=precision)
        trainer.learner = Watching(trainer.agent)
        trainer.join()
        push(trainer.database, some_sessions(2))
        trainer.feed()
        assert trainer.step()
    assert dtypes == [torch.float32, torch.bfloat16]


def test_a_server_that_was_emptied_gets_no_weights_without_a_run(redis_url):
    """The server was emptied after the lease was taken and before the weights came."""
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    database.clear()
    trainer.publish(trainer.snapshot())
    assert database.get_weights() is None and not trainer.publisher.must_publish
    trainer.feed()
    assert trainer.publisher.must_publish
    trainer.publish(trainer.snapshot())
    assert database.state().version == trainer.version and database.meta()["experiment"] == "counting"
    trainer.feed()
    assert trainer.state.run_id == database.state().run_id != ""
    database.clear()


def test_a_lease_that_ran_out_is_taken_again_unless_another_has_it(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    database.release_lease(trainer.publisher.holder)
    trainer.publish(trainer.snapshot())
    assert database.state().version == trainer.version
    database.release_lease(trainer.publisher.holder)
    assert database.acquire_lease("another:1:x")
    with pytest.raises(LeaseLost):
        trainer.publish(trainer.snapshot())
    database.clear()


def test_in_bf16_an_update_of_several_steps_sees_the_weights_that_it_has_changed():
    """Autocast's cache would go on with the copies of before, so that PPO would train on stale weights."""
    database = MemoryDatabase()
    trainer = a_network_trainer(database)
    trainer.config = dataclasses.replace(trainer.config, precision="bf16")
    linear = next(module for module in trainer.agent.network.modules() if isinstance(module, torch.nn.Linear))
    seen = []

    def train_step(batch):
        for _ in range(2):
            seen.append(linear(torch.ones(1, linear.in_features)))
            seen[-1].sum().backward()
            with torch.no_grad():
                linear.weight.mul_(2.0)
        return {"loss/total": torch.tensor(0.0)}

    trainer.learner.train_step = train_step
    trainer.join()
    trainer.feed()
    push(database, network_sessions(2))
    trainer.feed()
    assert trainer.step() and seen[0].dtype == torch.bfloat16 and not torch.allclose(*seen)
