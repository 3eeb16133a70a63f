"""R2D2: stored state and burn-in against the whole episode, through the replay, and that it learns."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.algorithms.test_dqn import Chainer
from tests.helpers.chains import LENGTH, OBSERVED, Chains, play_on
from tinyverse.algorithms import R2D2
from tinyverse.core import nest
from tinyverse.core.session import Session, flatten
from tinyverse.experiment.experiment import session_spec
from tinyverse.networks import LSTM, MLP, ModularNetwork
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Prioritized

torch.set_num_threads(1)

DISCRETE = spaces.Discrete(2)


@pytest.fixture
def agent():
    torch.manual_seed(0)
    agent = Chainer(ModularNetwork(OBSERVED, DISCRETE, trunk=MLP(8), body=LSTM(8)), DISCRETE, epsilon=0.9, alpha=1.0)
    agent.seed(0)
    return agent


def sessions_of(batch):
    """What a player would have pushed."""

    def column(tree, game, leading=False):
        return nest.map(lambda leaf: (leaf[game] if leading else leaf[:, game]).numpy(), tree)

    names = ("observations", "actions", "rewards", "terminated", "truncated", "valid")
    metadata = {"version": "0", "update": "0", "sequence": "0", "player": "p"}
    for game in range(batch.rewards.shape[1]):
        trees = {name: column(getattr(batch, name), game) for name in names}
        trees["extras"] = {"behaviour_log_prob": column(batch.extras["behaviour_log_prob"], game)}
        trees["initial_state"] = column(batch.initial_state, game, leading=True)
        yield Session(flatten(trees), metadata)


class Loop:
    """Player, replay and trainer in one."""

    def __init__(self, agent, num_envs=16, steps=10, batch_size=16, sampler=None, reuse=2.0):
        self.agent, self.chains, self.steps = agent, Chains(num_envs), steps
        self.state, self.is_first = agent.initial_state(num_envs), np.zeros(num_envs, bool)
        spec = session_spec(OBSERVED, DISCRETE, agent, steps)
        flow = ReplayConfig(batch_size=batch_size, buffer_size=200, reuse=reuse)
        self.replay = Replay(spec, flow, sampler or Prioritized(alpha=0.9, beta=0.6))

    def play(self):
        batch, self.state, self.is_first = play_on(self.agent, self.chains, self.state, self.is_first, self.steps)
        for session in sessions_of(batch):
            self.replay.add(session)
        return batch

    def learn(self, learner):
        batch = self.replay.sample(length=learner.length, burn_in=learner.burn_in)
        metrics = learner.train_step(batch)
        if "priorities" in metrics:
            self.replay.set_priorities(batch.slots, metrics["priorities"])
        return batch, metrics


def test_the_papers_settings(agent):
    learner = R2D2(agent)
    settings = (learner.discount, learner.n, learner.target_every, learner.length, learner.burn_in, learner.squash)
    assert settings == (0.997, 5, 2500, 80, 40, 1e-3) and learner.reward_clip is None and learner.eta == 0.9


@pytest.mark.parametrize(("length", "burn_in"), [(6, 4), (4, 2)], ids=["whole sessions", "slices"])
def test_it_learns_to_walk_the_chain_from_prioritised_replay(agent, length, burn_in):
    loop = Loop(agent)
    learner = R2D2(agent, length=length, burn_in=burn_in, n=3, learning_rate=5e-3, target_every=10)
    weights = []
    for _ in range(60):
        loop.play()
        for _ in range(2):
            batch, metrics = loop.learn(learner)
            weights.append(batch.weights)
    assert batch.rewards.shape == (length + burn_in, 16) and batch.burn_in == burn_in
    assert metrics["loss/total"].isfinite() and torch.stack(weights).min() < 0.9
    agent.epsilon = 0.0
    after = Loop(agent, steps=20).play()
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH


def test_a_slice_from_the_beginning_is_valued_as_it_was_in_play(agent):
    """The third session of every environment begins in mid-episode: the stored state makes its values those of the whole episode."""
    loop, parts = Loop(agent, steps=7), []
    state = loop.agent.initial_state(16)[0]
    for _ in range(3):
        parts.append(loop.play())
    observations = torch.cat([part.observations[:-1] for part in parts] + [parts[-1].observations[-1:]])
    valid = torch.cat([part.valid for part in parts])
    is_first = torch.cat([torch.zeros_like(valid[:1]), ~valid])
    learner = R2D2(agent, length=4, burn_in=3)
    wanted = agent.q_values(agent.network(observations, state, is_first)[0])[-5:]
    parts[-1].burn_in = 3
    got = learner._q_of_rows(agent.network, parts[-1])
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    forgot = nest.map(torch.zeros_like, parts[-1].initial_state)
    parts[-1].initial_state, parts[-1].burn_in = forgot, 0
    assert (learner._q_of_rows(agent.network, parts[-1])[0] - wanted[0]).abs().max() > 1e-3


def test_no_gradient_flows_into_the_burn_in_and_no_loss_comes_of_it(agent):
    """Its observations and rewards reach the loss by the state alone, and the state is a constant."""
    loop = Loop(agent)
    batch = loop.play()
    learner = R2D2(agent, length=6, burn_in=4, squash=None)
    batch.burn_in = 4
    seen = []
    handle = agent.network.body.register_forward_hook(lambda body, given, gave: seen.append((given[0], gave)))
    loss, _ = learner.loss(batch)
    handle.remove()
    assert [x.shape[0] for x, _ in seen[:2]] == [4, 7]
    assert not any(leaf.requires_grad for leaf in nest.leaves(seen[0][1][1])) and seen[1][1][0].requires_grad
    batch.rewards[:4] = 1000.0
    assert torch.equal(learner.loss(batch)[0], loss)


def test_priorities_go_to_the_sessions_they_are_of_and_not_to_those_that_overwrote_them(agent):
    loop = Loop(agent, num_envs=8, batch_size=8)
    loop.replay = Replay(
        loop.replay.spec, ReplayConfig(batch_size=8, buffer_size=8, reuse=None), Prioritized(alpha=1.0, beta=1.0)
    )
    loop.play()
    first = loop.replay.sample()
    loop.replay.set_priorities(first.slots, torch.full((8,), 2.0))
    for session in list(sessions_of(loop.play()))[:3]:
        loop.replay.add(session)  # 8 + 3 newer ones: all 8 are gone
    second = loop.replay.sample()
    loop.replay.set_priorities(first.slots, torch.full((8,), 1e9))  # too late
    drawn = np.bincount(np.concatenate([loop.replay.sample().slots.numpy() % 8 for _ in range(50)]), minlength=8)
    assert drawn.max() == drawn.min() == 50
    assert set(second.slots.tolist()) == set(range(11, 19))
