"""The whole loop: counting environments through player, courier, a real server, trainer and replay, every row checked."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers import sources
from tests.helpers.counting import BUTTONS, CountingEnv, clock, reward_of, truncates
from tests.helpers.people import LENGTH, Beside, a_player, a_run, a_spec, a_trainer, an_agent, until
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.learner import Learner
from tinyverse.algorithms.vtrace import VTrace
from tinyverse.core import nest
from tinyverse.core.run_config import run_config
from tinyverse.core.session import flatten
from tinyverse.database.base import BEGINNING, new_worker
from tinyverse.envs.pool import SerialPool
from tinyverse.experiment.experiment import session_spec
from tinyverse.networks import LSTM, MLP, ModularNetwork, Window
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh
from tinyverse.trainer.trainer import Trainer

torch.set_num_threads(1)

GAMES = 3
BATCHES = 40


def through_the_pipe(database, trainer, player, uploader, batches=BATCHES):
    """Plays and learns until everything played is learned from; returns the sessions as they lie in the database."""
    trainer.join()
    uploader.start()

    def play_on(should_stop):
        return play(player, uploader, batches=batches, should_stop=should_stop)

    wanted = batches * player.num_envs
    with Beside(play_on) as playing:

        def all_learned():
            trainer.feed()
            trainer.step()
            assert playing.error is None
            return trainer.update * trainer.replay.config.batch_size == wanted

        until(all_learned)
    uploader.close()
    assert uploader.failure is None
    assert database.state().inserted == wanted
    return [trainer.replay.spec.decode(blob) for _, blob in database.read(BEGINNING, 10 * wanted)[0]]


def walk(sessions, nested, *, waits=False, apart=1):
    """Follows one environment through its sessions by the rules of `tinyverse.core.session`; returns what it met at borders.

    Args:
        waits: whether a reset may take several rows, because others of the environment's match still play.
        apart: episodes from one that is shown to the next; a source may throw some away.
    """
    met = set()
    expected, count, ended, is_first = None, 0, False, True  # next observation; agent's state; previous row; opens one
    total, length = 0.0, 0
    for session in sessions:
        episodes = []
        rows = clock(session.observations)
        if is_first:
            met.add("opens an episode at row 0")
        if not is_first and not ended and count:
            met.add("goes on within an episode")
        assert session.initial_state == (0 if is_first else count)
        for t in range(len(session.rewards)):
            episode, step, tag = rows[t].tolist()
            assert expected is None or rows[t].tolist() == expected
            count = 0 if is_first else count
            assert session.extras["count"][t] == count
            np.testing.assert_array_equal(session.extras["saw"][t], rows[t])
            button = session.actions["button"][t] if nested else session.actions[t]
            assert button == count % BUTTONS
            if nested:
                pair = session.observations["pair"]
                assert pair[0][t] == step
                assert (pair[1][t] == episode % 2).all()
                assert (session.actions["stick"][t] == 9.0).all()  # as chosen, before the door clips it
            assert session.valid[t] == (not ended)
            if ended:
                assert (session.rewards[t], session.terminated[t], session.truncated[t]) == (0, False, False)
                met.add({0: "reset at row 0", len(session.rewards) - 1: "reset at the last row"}.get(t, "reset"))
                ended = waits and rows[t + 1].tolist() == [episode, step, tag]
                expected = [episode, step, tag] if ended else [episode + apart, 0, tag]
                is_first, total, length = True, 0.0, 0
            else:
                assert count == step
                assert session.rewards[t] == reward_of(episode, step, button)
                total, length = total + reward_of(episode, step, int(button)), length + 1
                expected, is_first = [episode, step + 1, tag], False
                over = bool(session.terminated[t] or session.truncated[t])
                assert session.terminated[t] == (over and not truncates(episode))
                assert session.truncated[t] == (over and truncates(episode))
                if over:
                    episodes.append((total, length))
                ended = over
            count += 1
        assert rows[-1].tolist() == expected
        assert session.episodes == episodes
    return met


def check_envs(sessions, num_envs, nested=False, **source):
    by_sequence = {int(session.metadata["sequence"]): session for session in sessions}
    assert sorted(by_sequence) == list(range(len(sessions)))  # none lost, none twice
    met = [
        walk([by_sequence[n] for n in range(game, len(sessions), num_envs)], nested, **source)
        for game in range(num_envs)
    ]
    assert set.union(*met) == {
        "opens an episode at row 0", "goes on within an episode", "reset at row 0", "reset", "reset at the last row",
    }  # fmt: skip
    tags = {clock(by_sequence[game].observations)[0, 2] for game in range(num_envs)}
    assert len(tags) == num_envs  # every environment its own


def columns(batches):
    """The slices of batches, in order, as arrays by dotted name."""
    for batch in batches:
        for b in range(len(batch.slots)):
            leaves = {}
            for field in ("observations", "actions", "rewards", "terminated", "truncated", "valid", "extras"):
                for name, leaf in flatten({field: getattr(batch, field)}).items():
                    leaves[name] = leaf[:, b].numpy()
            for name, leaf in flatten({"initial_state": batch.initial_state}).items():
                leaves[name] = leaf[b].numpy()
            yield leaves


def check_same(sessions, batches):
    """Fresh delivers the sessions in their order, each once."""
    for session, leaves in zip(sessions, columns(batches), strict=True):
        arrays = session.arrays
        assert arrays.keys() == leaves.keys()
        for name in arrays:
            np.testing.assert_array_equal(arrays[name], leaves[name], name)


@pytest.mark.parametrize("source", sources.SOURCE_PARAMS)
def test_every_row_arrives_as_it_was_played_each_once(redis_url, source):
    num_envs, nested, pool = sources.GAMES, source.startswith("nested"), sources.SOURCES[source]()
    spec = session_spec(pool.observation_space, pool.action_space, an_agent(nested), LENGTH)
    database = a_run(redis_url)
    trainer = a_trainer(database, flow=ReplayConfig(batch_size=num_envs, buffer_size=500), nested=nested, spec=spec)
    player, uploader = a_player(database, nested=nested, pool=pool)
    sessions = through_the_pipe(database, trainer, player, uploader)
    player.close()
    assert {session.metadata["player"] for session in sessions} == {uploader.worker.id}
    check_envs(sessions, num_envs, nested, waits="agents" in source, apart=2 if "disabled" in source else 1)
    check_same(sessions, trainer.learner.batches)
    valid = sum(int(session.valid.sum()) for session in sessions)
    ended = [episode for session in sessions for episode in session.episodes]
    assert (trainer.feeder.steps, trainer.feeder.episodes, player.rate.total) == (valid, len(ended), valid)
    assert list(trainer.feeder.returns) == [total for total, _ in ended][-100:]
    stored = [(row["return"], row["length"]) for row in database.episodes(10_000)]
    assert stored == ended


def test_two_players_do_not_mix(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database, flow=ReplayConfig(batch_size=2, buffer_size=500))
    trainer.join()
    people = [a_player(a_run_again(redis_url, database), num_envs=1, seed=seed) for seed in (1, 2)]
    for _, uploader in people:
        uploader.start()

    def both(should_stop):
        tasks = [Beside(lambda should_stop, who=who: play(*who, batches=20, should_stop=should_stop)) for who in people]
        for task in tasks:
            task.start()
        return [task.finish() for task in tasks]

    with Beside(both) as playing:
        until(lambda: (trainer.feed(), trainer.step(), trainer.update == 20)[-1])
    assert playing.result == [20, 20]
    for _, uploader in people:
        uploader.close()
    sessions = [trainer.replay.spec.decode(blob) for _, blob in database.read(BEGINNING, 1000)[0]]
    assert len(sessions) == 40
    for _, uploader in people:
        own = [session for session in sessions if session.metadata["player"] == uploader.worker.id]
        assert [int(session.metadata["sequence"]) for session in own] == list(range(20))
        walk(own, nested=False)
    assert trainer.feeder.rejected == {}


def a_run_again(url, database):
    """Another connection to the same run."""
    return type(database)(url, database.run)


def test_the_agents_unroll_over_a_batch_is_what_it_did_when_it_played(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database, flow=ReplayConfig(batch_size=GAMES, buffer_size=500))
    player, uploader = a_player(database, num_envs=GAMES)
    through_the_pipe(database, trainer, player, uploader)
    agent, restarts = an_agent(), 0
    for batch in trainer.learner.batches:
        arrays = batch.numpy()
        state = arrays.initial_state
        for t in range(LENGTH):
            _, state, extras = agent.act(arrays.observations[t], state, arrays.is_first[t])
            np.testing.assert_array_equal(extras["count"], arrays.extras["count"][t])
        restarts += int(arrays.is_first[:-1].sum())
    assert restarts > 30


class SmallNumbers(gymnasium.ObservationWrapper):
    """The counting environment as a network likes to see it."""

    def __init__(self) -> None:
        super().__init__(CountingEnv())
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)

    def observation(self, numbers):
        return np.array([numbers[0] % 5 / 5, numbers[1] / 6, numbers[2] % 7 / 7], np.float32)


class Watching(Learner):
    """Learns nothing and keeps the batches."""

    def __init__(self, agent):
        self.agent, self.batches = agent, []

    def train_step(self, batch):
        self.batches.append(batch)
        return {}

    def get_weights(self):
        return self.agent.get_weights()


PARTS = {
    "window": lambda: {"trunk": Window(4, MLP(16))},
    "lstm": lambda: {"trunk": MLP(16), "body": LSTM(8)},
    "both": lambda: {"trunk": Window(4, MLP(16)), "body": LSTM(8)},
}


def a_torch_agent(parts):
    env = SmallNumbers()
    agent = TorchAgent(ModularNetwork(env.observation_space, env.action_space, **PARTS[parts]()))
    with torch.no_grad():  # far from its calm beginning, so that another state would show
        for parameter in agent.network.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    agent.seed(0)
    return agent


def log_probs(network, batch, state, is_first):
    outputs, _ = network(batch.observations, state, is_first)
    return network.distribution(nest.map(lambda rows: rows[:-1], outputs.policy)).log_prob(batch.actions)


@pytest.mark.parametrize("parts", PARTS)
def test_training_recomputes_the_log_probabilities_of_acting(redis_url, parts):
    torch.manual_seed(0)
    database, learning = a_run(redis_url), a_torch_agent(parts)
    env = SmallNumbers()
    spec = session_spec(env.observation_space, env.action_space, learning, 7)
    replay = Replay(spec, ReplayConfig(batch_size=GAMES, buffer_size=500), Fresh())
    trainer = Trainer(learning, Watching(learning), replay, database, run_config("small", {}, spec))
    pool = SerialPool(SmallNumbers, GAMES)
    uploader = Uploader(database, new_worker("play", num_envs=GAMES), a_torch_agent(parts))
    player = Player(a_torch_agent(parts), pool, 7)
    through_the_pipe(database, trainer, player, uploader, 30)
    off_state = off_first = 0.0
    with torch.no_grad():
        for batch in trainer.learner.batches:
            played = batch.extras["behaviour_log_prob"]
            again = log_probs(learning.network, batch, batch.initial_state, batch.is_first)
            assert float((again - played).abs().max()) < 1e-4
            blank = log_probs(learning.network, batch, learning.initial_state(GAMES), batch.is_first)
            never = log_probs(learning.network, batch, batch.initial_state, torch.zeros_like(batch.is_first))
            off_state = max(off_state, float((blank - played).abs().max()))
            off_first = max(off_first, float((never - played).abs().max()))
    assert off_state > 0.01  # what a mistake in the bookkeeping would give
    assert off_first > 0.01


def test_vtrace_on_the_batches_of_the_pipe_is_on_policy(redis_url):
    torch.manual_seed(0)
    database, learning = a_run(redis_url), a_torch_agent("both")
    env = SmallNumbers()
    spec = session_spec(env.observation_space, env.action_space, learning, 7)
    replay = Replay(spec, ReplayConfig(batch_size=GAMES, buffer_size=500), Fresh())
    learner = VTrace(learning, learning_rate=0.0)
    trainer = Trainer(learning, learner, replay, database, run_config("small", {}, spec))
    uploader = Uploader(database, new_worker("play", num_envs=GAMES), a_torch_agent("both"))
    through_the_pipe(database, trainer, Player(a_torch_agent("both"), SerialPool(SmallNumbers, GAMES), 7), uploader, 10)
    assert float(trainer.metrics["vtrace/mean_rho"]) == pytest.approx(1.0, abs=1e-4)


def test_the_spec_names_what_the_pipe_carries():
    fields = a_spec(nested=True).fields
    assert set(fields) == {
        "observations.clock", "observations.pair.0", "observations.pair.1", "actions.button", "actions.stick",
        "rewards", "terminated", "truncated", "alive", "initial_memory", "extras.count", "extras.saw", "extras.weight",
    }  # fmt: skip
    assert fields["observations.clock"] == ((LENGTH + 1, 3), np.dtype(np.int32))
