"""Replay: what was stored comes out, as often as was agreed, and no setting makes players and trainer wait for each other."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.counting import CountingAgent, CountingEnv
from tinyverse.agents.agent import Agent
from tinyverse.algorithms.learner import Learner
from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import BEGINNING
from tinyverse.database.memory import MemoryDatabase
from tinyverse.experiment.experiment import session_spec
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Mixed, Prioritized, Uniform, sampler_of
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.trainer import Trainer

torch.set_num_threads(1)

T = 5
ENV = CountingEnv(nested=True)
SPEC = session_spec(ENV.observation_space, ENV.action_space, CountingAgent(None, ENV.action_space), T)


def session_of(number, update=0, spec=SPEC):
    """Every value says which session and which row it is of."""
    arrays = {}
    for name, (shape, dtype) in spec.fields.items():
        rows = np.arange(shape[0] if shape else 1).reshape(-1, *[1] * max(len(shape) - 1, 0))
        values = np.broadcast_to(100 * number + rows, shape or (1,)).reshape(shape)
        arrays[name] = values % 2 == 0 if dtype.kind == "b" else values.astype(dtype)
    metadata = {"player": "p", "sequence": str(number), "version": str(update), "update": str(update)}
    return Session(arrays, metadata)


def replay_of(sampler=None, count=0, spec=SPEC, **flow):
    flow = {"batch_size": 2, "buffer_size": 8, "reuse": None, **flow}
    replay = Replay(spec, ReplayConfig(**flow), sampler or Fresh())
    for number in range(1, count + 1):
        replay.add(session_of(number, spec=spec), session_id=f"{number}-0")
    return replay


def numbers_of(batch):
    return (batch.rewards[0] // 100).long().tolist()


# -- storing ------------------------------------------------------------------------------------------------------------


def test_what_was_stored_comes_out_time_first():
    batch = replay_of(count=2).sample()
    for column, number in enumerate((1, 2)):
        session = session_of(number)
        for field in ("observations", "actions", "rewards", "terminated", "truncated", "valid", "extras"):
            got, wanted = nest.flatten(getattr(batch, field), field), nest.flatten(getattr(session, field), field)
            assert got.keys() == wanted.keys()
            for name, leaf in wanted.items():
                np.testing.assert_array_equal(got[name][:, column], leaf)
                assert got[name].dtype == torch.from_numpy(np.array(leaf)).dtype
        assert batch.initial_state[column] == session.initial_state
    assert isinstance(batch.observations["pair"], tuple)
    assert batch.weights.tolist() == [1, 1] and batch.lag.tolist() == [0, 0] and batch.slots.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("length", [T, 2])
def test_every_dtype_of_the_wire_can_be_stored_and_cut(dtype, length):
    fields = {
        **SPEC.fields,
        "observations.clock": ((T + 1, 3), np.dtype(dtype)),
        "initial_memory": ((2,), np.dtype(dtype)),
    }
    spec = SessionSpec(fields)
    replay = replay_of(count=2, spec=spec)
    replay_batch = replay.sample(length=length)
    assert replay_batch.observations["clock"].shape == (length + 1, 2, 3)
    assert 8 * spec.nbytes <= replay.nbytes < 8 * (spec.nbytes + 16 * len(fields))


def test_the_ring_overwrites_the_oldest():
    replay = replay_of(Uniform(), count=11, batch_size=8)
    assert sorted(numbers_of(replay.sample())) == list(range(4, 12)) and len(replay) == 8
    assert replay.dropped == {"expired": 0, "unused": 3} and replay.limiter.inserted == 11


def test_fresh_loses_what_was_overwritten():
    replay = replay_of(count=11)
    assert [numbers_of(replay.sample()) for _ in range(4)] == [[4, 5], [6, 7], [8, 9], [10, 11]]
    assert replay.sample() is None and replay.waits_for() == "2 more new sessions"


def test_a_batch_does_not_change_when_its_slot_is_overwritten():
    replay = replay_of(count=2, buffer_size=2)
    batch = replay.sample()
    for number in (7, 8):
        replay.add(session_of(number))
    assert numbers_of(batch) == [1, 2] and batch.initial_state.tolist() == [100, 200]


def test_what_is_stored_does_not_change_with_the_session():
    replay, session = replay_of(batch_size=1), session_of(1)
    replay.add(session)
    session.rewards[:] = -1
    assert numbers_of(replay.sample()) == [1]


# -- slices -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "burn_in"), [(1, 0), (2, 0), (4, 0), (5, 0), (2, 2), (1, 4), (3, 2)])
def test_slices_are_consecutive_rows_and_begin_anywhere(length, burn_in):
    replay, rows, starts = replay_of(Uniform(), count=8, batch_size=8), length + burn_in, set()
    for _ in range(30):
        batch = replay.sample(length=length, burn_in=burn_in)
        start = batch.rewards[0].long() % 100
        number = batch.rewards[0].long() // 100
        starts.update(start.tolist())
        wanted = 100 * number + start + torch.arange(rows + 1)[:, None]
        torch.testing.assert_close(batch.rewards, wanted[:-1].float())
        torch.testing.assert_close(batch.actions["button"], wanted[:-1])
        torch.testing.assert_close(batch.observations["pair"][0], wanted)
        torch.testing.assert_close(batch.extras["saw"][..., 1], wanted[:-1].float())
        torch.testing.assert_close(batch.initial_state, torch.where(start == 0, 100 * number, 0))
        assert batch.burn_in == burn_in and not batch.mask[:burn_in].any()
        torch.testing.assert_close(batch.mask[burn_in:], batch.valid[burn_in:].float())
    assert starts == set(range(T - rows + 1))


@pytest.mark.parametrize(("length", "burn_in"), [(0, 0), (6, 0), (3, 3), (-1, 0), (0, 6)])
def test_slices_that_do_not_fit_are_refused(length, burn_in):
    with pytest.raises(SettingsError, match="cannot be cut from sessions of 5"):
        replay_of(count=2).sample(length=length, burn_in=burn_in)


# -- how often ----------------------------------------------------------------------------------------------------------


def deliveries(replay, sessions, updating=False):
    """How often each session was delivered when the trainer takes all it may after each arrival."""
    counts, update = np.zeros(sessions + 1), 0
    for number in range(1, sessions + 1):
        replay.add(session_of(number, update), session_id=f"{number}-0", update=update)
        while (batch := replay.sample(update)) is not None:
            np.add.at(counts, numbers_of(batch), 1)
            update += updating
    return counts[1:]


def test_fresh_delivers_each_once_and_in_order():
    replay, seen = replay_of(batch_size=3), []
    for number in range(1, 21):
        replay.add(session_of(number))
        if (batch := replay.sample()) is not None:
            seen += numbers_of(batch)
    assert seen == list(range(1, 19)) and replay.limiter.sampled == 18


@pytest.mark.parametrize("reuse", [0.25, 1, 2.5, 8])
@pytest.mark.parametrize("batch", [1, 4])
def test_reuse_is_met_on_average(reuse, batch):
    replay = replay_of(Uniform(), reuse=reuse, batch_size=batch, buffer_size=20)
    counts = deliveries(replay, 400)
    assert abs(counts.sum() - 400 * reuse) <= batch + reuse
    assert replay.limiter.sampled == pytest.approx(counts.sum())


def test_reuse_is_met_though_sessions_expire():
    counts = deliveries(replay_of(Uniform(), reuse=2, batch_size=4, buffer_size=50, max_lag=10), 600, updating=True)
    assert counts.sum() == pytest.approx(1200, rel=0.02)


def test_uniform_deliveries_are_uniform():
    replay, counts = replay_of(Uniform(), count=8, batch_size=2), np.zeros(9)
    for _ in range(2000):
        np.add.at(counts, numbers_of(replay.sample()), 1)
    assert (
        counts[0] == 0 and ((counts[1:] - 500) ** 2 / 500).sum() < 24.3
    )  # chi square, 7 degrees of freedom, p = 0.001


def test_without_reuse_the_trainer_never_waits():
    replay = replay_of(Uniform(), count=2)
    assert all(replay.sample() is not None for _ in range(100)) and replay.config.max_ahead is None


@pytest.mark.parametrize("fresh", [0.5, 0.25])
def test_mixed_delivers_its_share(fresh):
    replay = replay_of(Mixed(fresh), batch_size=8, buffer_size=64)
    counts = deliveries(replay, 400)
    assert (counts[:-8] >= 1).all() and counts.sum() == pytest.approx(400 / fresh, rel=0.05)
    assert replay.config.reuse == 1 / fresh


@pytest.mark.parametrize(("sampler", "reuse"), [(Fresh, 2), (Fresh, 0.5), (Mixed, 1.0)])
def test_a_reuse_that_the_sampler_cannot_give_is_refused(sampler, reuse):
    with pytest.raises(
        SettingsError, match=rf"{sampler.__name__} delivers each session .* reuse {reuse:g} needs another sampler"
    ):
        replay_of(sampler(), reuse=reuse)


def test_seen_sessions_are_replayed_but_not_fresh():
    for sampler, wanted in ((Fresh(), [5, 6]), (Mixed(0.5), [5]), (Uniform(), [])):
        replay = replay_of(sampler)
        for number in range(1, 7):
            replay.add(session_of(number), seen=number <= 4)
        batch = numbers_of(replay.sample())
        assert batch[: len(wanted)] == wanted and len(replay) == 6
    counts = np.zeros(7)
    for _ in range(100):
        np.add.at(counts, numbers_of(replay.sample()), 1)
    assert (counts[1:] > 0).all()


def test_what_was_seen_before_a_restart_is_not_unused_when_it_is_overwritten():
    replay = replay_of(Fresh())
    for number in range(1, 18):
        replay.add(session_of(number), seen=number <= 8)
    assert replay.dropped["unused"] == 17 - 8 - 8


# -- priorities ---------------------------------------------------------------------------------------------------------


def priorities_of(replay):
    """How often each slot of 8 is drawn, from 0 to 1."""
    slots = replay.sampler.draw(20_000, np.random.default_rng(0))
    return np.bincount(slots, minlength=8) / len(slots)


def test_priorities_decide_what_is_delivered():
    replay = replay_of(Prioritized(alpha=1.0, beta=0.5), count=8, batch_size=4)
    replay.sample()
    given = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 4])
    replay.set_priorities(torch.arange(8), given)
    assert priorities_of(replay) == pytest.approx(given.numpy() / 32, abs=0.01)
    batch = replay.sample()
    weights = (8 * given[batch.slots] / 32) ** -0.5
    torch.testing.assert_close(batch.weights, weights / weights.max(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("drawn_between", [False, True])
def test_a_late_priority_does_not_reach_the_session_that_overwrote_its_own(drawn_between):
    replay = replay_of(Prioritized(alpha=1.0), count=8, batch_size=4)
    replay.sample()
    old = torch.arange(8)
    for number in range(9, 13):
        replay.add(session_of(number))  # over the first four
    if drawn_between:
        replay.sample()
    replay.set_priorities(old, torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 5]))
    assert replay.slots.numbers(np.arange(8)).tolist() == [8, 9, 10, 11, 4, 5, 6, 7]
    new = 1 if drawn_between else 5  # new ones get the largest so far
    wanted = np.array([new] * 4 + [1, 1, 1, 5])
    assert priorities_of(replay) == pytest.approx(wanted / wanted.sum(), abs=0.01)


def test_a_late_priority_does_not_bring_back_what_expired():
    replay = replay_of(Prioritized(alpha=1.0), batch_size=2, max_lag=5)
    for number in range(1, 5):
        replay.add(session_of(number, update=0 if number < 3 else 5))
    first = replay.sample(update=5)
    assert replay.sample(update=6) is not None and len(replay) == 2
    replay.set_priorities(torch.arange(4), torch.tensor([1e6, 1e6, 1.0, 1.0]))
    assert all(set(numbers_of(replay.sample(update=6))) <= {3, 4} for _ in range(50))
    assert first.slots.tolist() != []


def test_slots_tell_one_session_from_the_next_in_its_place():
    replay = replay_of(Uniform(), count=21, batch_size=8)
    batch = replay.sample()
    assert [number - 1 for number in numbers_of(batch)] == batch.slots.tolist()
    assert sorted(batch.slots.tolist()) == list(range(13, 21))


# -- age ----------------------------------------------------------------------------------------------------------------


def test_lag_is_the_trainers_update_minus_the_sessions():
    replay = replay_of(max_lag=10)
    for number, update in ((1, 3), (2, 7)):
        replay.add(session_of(number, update), update=8)
    assert replay.sample(update=9).lag.tolist() == [6, 2] and replay.lag == 4


def test_old_sessions_are_dropped_on_arrival():
    replay = replay_of(Uniform(), max_lag=2, batch_size=1, reuse=3)
    replay.add(session_of(1, update=7), update=10)
    assert (
        len(replay) == 0
        and replay.dropped["expired"] == 1
        and replay.limiter.inserted == 1
        and replay.limiter.sampled == 3
    )
    replay.add(session_of(2, update=8), update=10)
    assert len(replay) == 1 and replay.dropped["expired"] == 1


@pytest.mark.parametrize("sampler", [Fresh, Uniform, Mixed, Prioritized])
def test_old_sessions_are_dropped_in_memory(sampler):
    replay = replay_of(sampler(), max_lag=2, batch_size=1)
    for number in range(1, 7):
        replay.add(session_of(number, update=number), update=6 if number > 3 else number)
    batch = replay.sample(update=7)
    assert set(numbers_of(batch)) <= {5, 6} and replay.dropped["expired"] == 4 and len(replay) == 2
    assert replay.sample(update=100) is None
    assert len(replay) == 0 and replay.dropped["expired"] == 6


def test_what_expired_owes_nothing():
    replay = replay_of(Uniform(), max_lag=0, batch_size=2, reuse=4)
    for number in (1, 2, 3):
        replay.add(session_of(number))
    assert replay.sample() is not None and replay.limiter.sampled == 2
    assert replay.sample(update=1) is None and replay.limiter.sampled == 12 == replay.limiter.inserted * 4


def test_what_was_overwritten_owes_no_more_than_the_others_can_carry():
    replay = replay_of(Uniform(), count=20, buffer_size=4, batch_size=2, reuse=8)
    assert replay.limiter.inserted * 8 - replay.limiter.sampled == 4 * 8
    replay = replay_of(Uniform(), count=400, buffer_size=4, batch_size=4, reuse=0.1)
    assert replay.limiter.inserted * 0.1 - replay.limiter.sampled == pytest.approx(
        4
    )  # a batch may always be saved up for


# -- waiting ------------------------------------------------------------------------------------------------------------


def test_learning_begins_at_min_sessions():
    replay = replay_of(Uniform(), count=4, min_sessions=5)
    assert replay.sample() is None and replay.waits_for() == "4 of 5 sessions"
    replay.add(session_of(5))
    assert replay.waits_for() == "" and replay.sample() is not None


def test_learning_begins_at_a_batch_and_then_goes_on_with_less():
    replay = replay_of(Uniform(), count=3, batch_size=4, max_lag=1)
    assert replay.waits_for() == "3 of 4 sessions"
    replay.add(session_of(4, update=5))
    assert replay.sample() is not None
    assert len(set(numbers_of(replay.sample(update=5)))) == 1


def test_who_waits_for_reuse_says_for_how_many():
    replay = replay_of(Uniform(), count=4, batch_size=4, reuse=0.5)
    assert replay.sample() is None and replay.waits_for() == "4 more sessions (reuse 0.5 is reached)"


@pytest.mark.parametrize(
    ("flow", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"buffer_size": 0}, "buffer_size is 0"),
        ({"batch_size": 9, "buffer_size": 8}, "a batch of 9 sessions cannot come from a buffer of 8"),
        ({"min_sessions": 9, "buffer_size": 8}, "learning would never begin"),
        ({"min_sessions": -1}, "min_sessions is -1"),
        ({"reuse": 0}, "reuse is 0"),
        ({"reuse": -1.0}, "reuse is -1"),
        ({"reuse": math.nan}, "reuse is nan"),
        ({"max_lag": -1}, "max_lag is -1"),
    ],
)
def test_what_would_wait_for_ever_is_refused(flow, sentence):
    with pytest.raises(SettingsError, match=sentence) as refusal:
        ReplayConfig(**{"batch_size": 2, "buffer_size": 8, **flow})
    assert str(refusal.value).count(". ") <= 1 and str(refusal.value).endswith(".")


# -- books --------------------------------------------------------------------------------------------------------------


def test_the_newest_position_learned_from():
    replay = replay_of(count=4)
    assert replay.newest_sampled == BEGINNING
    replay.sample()
    assert replay.newest_sampled == "2-0"
    replay.sample()
    assert replay.newest_sampled == "4-0"


def test_positions_can_be_forgotten_and_sessions_stay():
    replay = replay_of(count=4)
    replay.sample()
    replay.forget_positions()
    assert replay.newest_sampled == BEGINNING
    assert numbers_of(replay.sample()) == [3, 4] and replay.newest_sampled == BEGINNING


def test_positions_are_compared_as_numbers():
    replay = replay_of(batch_size=1)
    for session_id in ("9-0", "10-0", "10-9", "10-10"):
        replay.add(session_of(1), session_id=session_id)
        replay.sample()
        assert replay.newest_sampled == session_id
    replay = replay_of(Uniform(), count=8, batch_size=8)
    for _ in range(3):
        replay.sample()
        assert replay.newest_sampled == "8-0"


def test_what_is_written_off_counts_as_sampled():
    replay = replay_of(Uniform(), reuse=3, count=1)
    replay.write_off(5)
    assert replay.limiter.inserted == 6 and replay.limiter.sampled == 15
    replay = replay_of(Fresh(), count=1)
    replay.write_off(5)
    assert replay.limiter.inserted == 6 and replay.limiter.sampled == 5


@pytest.mark.parametrize(("sampler", "sampled"), [(Fresh, 97), (Mixed, 194), (Uniform, 400), (Prioritized, 400)])
def test_after_a_restart_only_what_waits_is_owed(sampler, sampled):
    replay = replay_of(sampler(), count=3, reuse=4 if sampler in (Uniform, Prioritized) else None)
    replay.catch_up(100)
    assert replay.limiter.inserted == 100 and replay.limiter.sampled == sampled


def test_after_a_restart_expired_sessions_are_not_paid_twice():
    replay = replay_of(Uniform(), count=8, reuse=4, max_lag=0)
    replay.catch_up(8)
    assert replay.sample(update=1) is None
    assert replay.limiter.sampled == 32 and replay.waits_for() == "0 of 2 sessions"


# -- nobody waits for ever (the property of the design) -----------------------------------------------------------------

TINY = SessionSpec({
    "observations": ((2,), np.dtype("u1")), "actions": ((1,), np.dtype("u1")), "rewards": ((1,), np.dtype("f4")),
    **{name: ((1,), np.dtype("?")) for name in ("terminated", "truncated", "alive")},
})  # fmt: skip
ZEROS = {name: np.zeros(*field) for name, field in TINY.fields.items()}


class Idle(Learner):
    """Learns nothing, at once."""

    def __init__(self):
        pass

    def train_step(self, batch):
        return {}

    def get_weights(self):
        return {}


@dataclasses.dataclass
class Settings:
    sampler: str = "uniform"
    batch_size: int = 1
    extra_buffer: int = 0  # above the least that is allowed
    reuse: float | None = 1.0
    max_lag: int | None = None
    min_sessions: int = 0
    players: int = 1
    num_envs: int = 1
    publish_every: int = 1
    reads: float = 1.0  # chance that the trainer reads in a turn: else sessions may be trimmed before it does
    restarts: float = 0.0  # chance in a turn that the trainer is killed and started again
    seed: int = 0


class World:
    """Players, a database and a trainer, a turn at a time; reports come in every third turn."""

    def __init__(self, chosen):
        self.chosen, self.random, self.database = chosen, random.Random(chosen.seed), MemoryDatabase()
        self.flow = ReplayConfig(
            batch_size=chosen.batch_size, buffer_size=max(chosen.batch_size, chosen.min_sessions) + chosen.extra_buffer, max_lag=chosen.max_lag,
            reuse=chosen.reuse if chosen.sampler in ("uniform", "prioritized") else None, min_sessions=chosen.min_sessions,
        )  # fmt: skip
        self.trainer, self.updates, self.sequence = None, 0, 0
        self.starts = self.started_at = 0
        self.playing = {}  # player -> version and update of the weights it plays with
        self.start()

    def start(self):
        if self.trainer is not None:  # killed: it says nothing, but its lease runs out
            self.database.release_lease(self.trainer.publisher.holder)
        replay = Replay(TINY, self.flow, sampler_of(self.chosen.sampler), seed=self.chosen.seed)
        config = TrainerConfig(publish_every=self.chosen.publish_every)
        self.trainer = Trainer(Agent(), Idle(), replay, self.database, {}, config=config)
        self.trainer.join()
        self.starts += 1

    def turn(self, number):
        if self.random.random() < self.chosen.restarts and self.starts < 5:
            self.start()
            self.started_at = number
        for player in self.random.sample(range(self.chosen.players), self.chosen.players):
            self._play(player)
        if self.random.random() < self.chosen.reads:
            while self.trainer.feed():
                pass
        if number % 3 == 0:
            self.trainer.publisher.report(self.trainer.update)
            self._check_players_are_not_too_far_ahead()
        while self.updates < number and self.trainer.step():
            self.updates += 1
            if self.trainer.update % self.chosen.publish_every == 0:
                self.trainer.publish(self.trainer.snapshot())

    def _play(self, player):
        state = self.database.state()
        if player not in self.playing:
            if state.may_play:
                self.playing[player] = decode_weights(self.database.get_weights()[1])[1]
            return
        if self.random.random() < 0.3:
            return
        numbers = self.playing.pop(player)
        for _ in range(self.chosen.num_envs):
            metadata = {
                "player": "p",
                "sequence": str(self.sequence),
                **{name: str(number) for name, number in numbers.items()},
            }
            self.database.append([Session(ZEROS, metadata).encode()])
            self.sequence += 1
            if self.random.random() < self.chosen.reads / 4:
                self.trainer.feed()  # the feeder is a thread of its own
        self._check_players_are_not_too_far_ahead()

    def _check_players_are_not_too_far_ahead(self):
        state, trainer = self.database.state(), self.trainer
        if state.max_ahead is not None and trainer.feeder.caught_up and state.sampled == trainer.replay.limiter.sampled:
            assert state.deficit <= state.max_ahead + state.reuse * self.chosen.players * self.chosen.num_envs + 1e-6

    def turns_needed(self):
        """A bound, generous, on the turns until the next update."""
        reuse = self.trainer.replay.config.reuse or 1.0
        sessions = max(self.flow.min_sessions, self.flow.batch_size) + 2 * self.flow.batch_size / min(reuse, 1.0)
        return 60 + 8 * sessions / (self.chosen.players * self.chosen.num_envs) / self.chosen.reads


def live(chosen, updates=5):
    world, turn = World(chosen), 0
    while world.updates < updates:
        before, patience = world.updates, world.turns_needed()
        began = turn
        while world.updates == before:
            turn += 1
            assert turn - max(began, world.started_at) < patience, (
                f"nothing moves: {world.trainer.waiting.reason}; {world.database.state()}"
            )
            world.turn(turn)
    return world


choices = st.builds(
    Settings,
    sampler=st.sampled_from(["fresh", "uniform", "mixed", "prioritized"]),
    batch_size=st.integers(1, 64),
    extra_buffer=st.sampled_from([0, 1, 7, 200]),
    reuse=st.none() | st.floats(0.1, 8) | st.sampled_from([0.1, 1.0, 1 / 3]),
    max_lag=st.none() | st.integers(0, 20),
    min_sessions=st.sampled_from([0, 0, 1, 10, 100]),
    players=st.sampled_from([1, 2, 5, 20]),
    num_envs=st.sampled_from([1, 2, 9, 64]),
    reads=st.sampled_from([1.0, 0.3]),
    restarts=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(choices)
@example(Settings(reuse=8.0, max_lag=0, players=20, num_envs=1))
@example(Settings(reuse=8.0, max_lag=0, players=1, num_envs=64))
@example(Settings(reuse=0.1, batch_size=64, players=1, num_envs=1))
@example(Settings(reuse=0.1, batch_size=64, players=20, num_envs=64))
@example(Settings(sampler="fresh", batch_size=64, max_lag=0, players=20, num_envs=9, reads=0.3, restarts=0.05))
@example(Settings(sampler="mixed", batch_size=1, min_sessions=100, restarts=0.05))
@example(Settings(reuse=8.0, batch_size=64, max_lag=3, restarts=0.05, players=5, num_envs=9))
@example(Settings(max_lag=9, batch_size=2, publish_every=10, players=2))
def test_no_setting_makes_everyone_wait(chosen):
    if chosen.players * chosen.num_envs > 256:
        chosen = dataclasses.replace(chosen, num_envs=max(1, 256 // chosen.players))
    live(chosen, updates=5 if chosen.publish_every == 1 else 25)
