"""Human: what a person does reaches the trainer as theirs, at the game's pace; a replay keeps it, an agent imitates it."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, a_run, a_trainer, until
from tinyverse import TorchAgent
from tinyverse.algorithms import BehaviourCloning, VTrace
from tinyverse.core.errors import ExperimentError, SettingsError, WindowClosed
from tinyverse.database.base import new_worker
from tinyverse.envs.pool import SerialPool
from tinyverse.experiment.experiment import session_spec
from tinyverse.monitoring import status
from tinyverse.networks import MLP, ModularNetwork
from tinyverse.player.human import HumanAgent, Window, bindings
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Mixed, Uniform

BUTTONS = spaces.Discrete(3, start=5)
STICK = spaces.Dict({"button": spaces.Discrete(2), "stick": spaces.Box(-1, 1, (2,), np.float32)})


class Corridor(CountingEnv):
    """The counting game with small observations, whose actions begin at 5."""

    def __init__(self):
        super().__init__()
        self.observation_space, self.action_space = spaces.Box(0, 1, (3,), np.float32), BUTTONS

    def _observation(self):
        return np.eye(3, dtype=np.float32)[self.now % 3]


def an_agent(env):
    torch.manual_seed(0)
    return TorchAgent(ModularNetwork(env.observation_space, env.action_space, trunk=MLP(16)))


def right(observations):
    """What the person in these tests does: the button that the observation shows."""
    return np.asarray(5 + int(observations[0].argmax()))


def played(agent, times=1, human=True, sequence=0):
    """Sessions of LENGTH steps."""
    player = Player(agent, SerialPool(Corridor, 1), LENGTH, seed=3)
    marks = {"human": "1"} if human else {}
    player.version = 0
    return [player.play().sessions("x", sequence + number, **marks)[0] for number in range(times)]


def demonstrations(times, human=True):
    env = Corridor()
    agent = an_agent(env)
    return env, played(HumanAgent(agent, env.action_space, right) if human else agent, times, human)


def spec_of(env, agent=None):
    return session_spec(env.observation_space, env.action_space, agent or an_agent(env), LENGTH)


def test_a_persons_session_is_one_of_the_run_and_their_actions_are_certain():
    env, (session,) = demonstrations(1)
    spec = spec_of(env)
    session = spec.decode(session.encode())
    assert session.human
    np.testing.assert_array_equal(session.actions, 5 + session.observations[:-1].argmax(-1))
    np.testing.assert_array_equal(session.extras["behaviour_log_prob"], np.zeros(LENGTH))
    logits = torch.from_numpy(session.extras["behaviour_logits"].copy())
    log_probs = logits.log_softmax(-1)[range(LENGTH), session.actions.copy() - 5]
    assert log_probs.tolist() == [0.0] * LENGTH


def test_v_trace_takes_the_agents_probability_as_the_ratio():
    env, sessions = demonstrations(4)
    agent = an_agent(env)
    replay = Replay(spec_of(env), ReplayConfig(batch_size=4, buffer_size=4, reuse=None), Uniform())
    for session in sessions:
        replay.add(session)
    batch = replay.sample()
    _, metrics = VTrace(agent, learning_rate=1e-3).loss(batch)
    outputs, _ = agent.network(batch.observations, batch.initial_state, batch.is_first)
    probabilities = outputs.policy[0][:-1].softmax(-1).gather(-1, (batch.actions - 5)[..., None])[..., 0]
    wanted = ((probabilities * batch.mask).sum() / batch.mask.sum()).detach()
    assert 0 < float(wanted) < 1
    torch.testing.assert_close(metrics["vtrace/mean_rho"], wanted)


def test_extras_that_the_agent_does_not_have_are_not_made_up():
    class Plain(TorchAgent):
        def act(self, observations, state, is_first, greedy=False):
            actions, state, _ = super().act(observations, state, is_first, greedy)
            return actions, state, {}

    env = Corridor()
    plain = Plain(an_agent(env).network)
    assert played(HumanAgent(plain, env.action_space, right))[0].extras == {}


# -- keys -----------------------------------------------------------------------------------------------------------


def test_keys_are_actions_and_none_is_the_first():
    found = bindings({"left": 6, "left + space": 7}, None, BUTTONS)
    assert {tuple(sorted(keys)): int(action) for keys, action in found.items()} == {
        (): 5,
        ("left",): 6,
        ("left", "space"): 7,
    }
    assert int(bindings({"": 7, "a": 5}, None, BUTTONS)[frozenset()]) == 7
    nested = bindings({"up": {"button": 1, "stick": [0.5, -1]}}, None, STICK)
    assert (
        nested[frozenset()]["stick"].tolist() == [0.0, 0.0] and nested[frozenset({"up"})]["stick"].dtype == np.float32
    )


def test_the_environment_may_name_the_keys():
    class Game(Corridor):
        def get_keys_to_action(self):
            return {("w", " "): 6, (ord("d"),): 7}

    assert {frozenset({"w", "space"}), frozenset({"d"})} < bindings(None, Game(), BUTTONS).keys()


@pytest.mark.parametrize(
    ("keys", "space", "says"),
    [
        (None, BUTTONS, "which key means which action"),
        ({"left": 0}, BUTTONS, "the key 'left' means 0, which is no action of"),
        ({"left": "x"}, BUTTONS, "no action of"),
        ({"": 99}, BUTTONS, "the key 'none' means 99"),
        ({"up": {"button": 1}}, STICK, "no action of"),
        ({"up": {"button": 1, "stick": [2.0, 0]}}, STICK, "no action of"),
    ],
)
def test_keys_that_are_no_actions_are_named(keys, space, says):
    with pytest.raises(ExperimentError, match=says):
        bindings(keys, None, space)


# -- the window ------------------------------------------------------------------------------------------------------


def test_the_window_keeps_the_pace_and_misses_no_key(monkeypatch):
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window("game", 50)
    with pytest.raises(ExperimentError, match="there is no key 'jump'"):
        window.check(["left", "jump"])
    window.show(np.zeros((10, 5), np.uint8))
    window.wait()
    for kind in (pygame.KEYDOWN, pygame.KEYUP):
        pygame.event.post(pygame.event.Event(kind, key=pygame.K_LEFT))
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_SPACE))
    assert window.wait() == {"left", "space"} and window.wait() == {"space"}
    began = time.monotonic()
    for _ in range(10):
        window.show(np.zeros((10, 5, 3), np.uint8))
        window.wait()
    assert 0.17 < time.monotonic() - began < 2.0  # 10 steps at 50 a second
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
    with pytest.raises(WindowClosed):
        window.wait()
    window.close()


# -- on the way ------------------------------------------------------------------------------------------------------


def test_info_counts_people_apart_and_the_curve_is_the_agents(redis_url):
    database = a_run(redis_url)
    trainer = a_trainer(database)
    trainer.join()
    for role, rounds in (("play", 1), ("human", 4)):
        from tests.helpers.people import an_agent as counting_agent

        uploader = Uploader(database, new_worker(role, num_envs=2), counting_agent())
        uploader.start()
        player = Player(counting_agent(), SerialPool(CountingEnv, 2), LENGTH)
        player.version = 0
        for _ in range(rounds):
            assert uploader.offer(player.play(), timeout=5.0)
        uploader.close()
    facts = until(lambda: (found := status.gather(database, "x"))["human_sessions"] == 8 and found)
    assert facts["inserted"] == 10 and facts["counters"] == {}
    rows = database.episodes(1000)
    people = [row["return"] for row in rows if row.get("human")]
    assert len(people) > len(rows) / 2 and facts["human_return"] == pytest.approx(np.mean(people))
    assert facts["mean_return"] == pytest.approx(np.mean([row["return"] for row in rows if not row.get("human")]))
    trainer.feed()
    assert trainer.feeder.episodes == facts["episodes"] == len(rows) - len(people)
    assert trainer.replay.slots.human.sum() == 8


def filled_replay(sampler, **flow):
    env, shown = demonstrations(2)
    replay = Replay(spec_of(env), ReplayConfig(**{"batch_size": 4, "buffer_size": 8, "reuse": None, **flow}), sampler)
    for session in shown:
        replay.add(session)
    return replay, demonstrations(1, human=False)[1][0]


def test_a_share_of_the_memory_is_the_peoples():
    replay, other = filled_replay(Mixed(fresh=0.5, human=0.25))
    for _ in range(40):
        replay.add(other)
    assert replay.slots.human.sum() == 2 and len(replay) == 8
    batches = [replay.sample() for _ in range(3)]
    assert [batch.human.sum().item() for batch in batches[:1]] >= [1]
    assert all(batch.human.sum() >= 1 and len(batch.slots) == 4 for batch in batches)


def test_more_than_the_share_is_written_over():
    shown = demonstrations(8)[1]
    replay, other = filled_replay(Mixed(fresh=0.5, human=0.25))
    for session in shown:
        replay.add(session)
    for _ in range(40):
        replay.add(other)
    assert replay.slots.human.sum() == 2


def test_without_people_the_others_take_their_place_and_without_a_share_they_are_fresh_as_any():
    replay, other = filled_replay(Mixed(fresh=0.5, human=0.25))
    empty = Replay(replay.spec, ReplayConfig(batch_size=4, buffer_size=8, reuse=None), Mixed(fresh=0.5, human=0.25))
    for _ in range(4):
        empty.add(other)
    assert empty.sample().human.sum() == 0
    assert replay.sampler.pending() == 0
    plain, _ = filled_replay(Mixed(fresh=0.5))
    assert plain.sampler.pending() == 2


@pytest.mark.parametrize("shares", [(0.5, 0.6), (0.5, -0.1), (0.0, 0.5), (0.5, 1.0)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(SettingsError, match="makes no sense"):
        Mixed(*shares)


def test_what_a_person_did_does_not_age():
    replay, other = filled_replay(Uniform(), max_lag=3)
    replay.add(demonstrations(1)[1][0], update=10)
    replay.add(other, update=10)
    assert len(replay) == 3 and replay.dropped["expired"] == 1
    replay.sample(update=10)
    assert len(replay) == 3


# -- imitation --------------------------------------------------------------------------------------------------------


def greedily_right(agent):
    actions, _, _ = agent.act(np.eye(3, dtype=np.float32), agent.initial_state(3), np.zeros(3, bool), greedy=True)
    return (actions == 5 + np.arange(3)).sum()


def wrong(observations):
    return np.asarray(5 + (int(observations[0].argmax()) + 1) % 3)


def test_behaviour_cloning_imitates_people_and_nobody_else():
    env, shown = demonstrations(16)
    others = played(HumanAgent(an_agent(env), env.action_space, wrong), 48, human=False, sequence=100)
    replay = Replay(spec_of(env), ReplayConfig(batch_size=8, buffer_size=64, reuse=None), Uniform())
    for session in shown + others:
        replay.add(session)
    agent, copycat = an_agent(env), an_agent(env)
    cloning, all_of_them = (
        BehaviourCloning(agent, learning_rate=0.02),
        BehaviourCloning(copycat, whom="all", learning_rate=0.02),
    )
    for _ in range(60):
        batch = replay.sample()
        losses = cloning.train_step(batch), all_of_them.train_step(batch)
    assert greedily_right(agent) == 3 and float(losses[0]["loss/imitation"]) < 0.2
    assert greedily_right(copycat) == 0


def test_a_batch_without_people_changes_nothing():
    env, sessions = demonstrations(4, human=False)
    replay = Replay(spec_of(env), ReplayConfig(batch_size=4, buffer_size=4, reuse=None), Fresh())
    for session in sessions:
        replay.add(session)
    agent = an_agent(env)
    before = {name: array.copy() for name, array in agent.get_weights().items()}
    metrics = BehaviourCloning(agent).train_step(replay.sample())
    assert float(metrics["loss/total"]) == 0
    for name, array in agent.get_weights().items():
        np.testing.assert_array_equal(array, before[name])


def test_whom_to_imitate_is_checked():
    with pytest.raises(SettingsError, match="imitates nobody"):
        BehaviourCloning(an_agent(Corridor()), whom="me")
