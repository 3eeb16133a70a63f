"""VTrace: the loss written out row by row, what it must not see, and that it learns."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.algorithms.test_r2d2 import Loop
from tests.helpers.chains import LENGTH, OBSERVED, Chains, agent_of, play, play_on
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import VTrace, returns
from tinyverse.networks import LSTM, MLP, ModularNetwork, Window
from tinyverse.replay.samplers import Mixed

torch.set_num_threads(1)


@pytest.fixture
def agent():
    return agent_of()


@pytest.fixture
def batch(agent):
    """With lag: another agent's log-probabilities."""
    batch = play(agent, num_envs=8, steps=10)
    batch.extras["behaviour_log_prob"] += 0.7 * torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    return batch


@pytest.mark.parametrize(
    ("parts", "optimizer"),
    [
        pytest.param({"trunk": MLP(16)}, "rmsprop", id="mlp-rmsprop"),
        pytest.param({"body": LSTM(16)}, "adam", id="lstm-adam"),
        pytest.param({"trunk": MLP(16)}, "adam", id="mlp-adam", marks=pytest.mark.slow),
        pytest.param({"body": LSTM(16)}, "rmsprop", id="lstm-rmsprop", marks=pytest.mark.slow),
    ],
)
def test_it_learns_to_walk_the_chain_from_lagging_players(parts, optimizer):
    agent = agent_of(**parts)
    player = copy.deepcopy(agent)
    learner = VTrace(agent, learning_rate=0.01, optimizer=optimizer, entropy_cost=0.003, max_grad_norm=1.0)
    before = play(agent, 16, 20)
    for update in range(120):
        if update % 4 == 0:
            player.set_weights(learner.get_weights())
        learner.train_step(play(player, 16, 20))
    after = play(agent, 16, 20)
    assert before.rewards.sum() / before.valid.sum() < 0.15
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH
    values = agent.network(torch.arange(LENGTH)[:1, None], agent.initial_state(1), torch.zeros(1, 1).bool())[0].values
    assert values.item() == pytest.approx(0.99 ** (LENGTH - 1), abs=0.15)


def test_it_learns_with_replay_mixed_in(agent):
    """Half of every batch was learned from before."""
    loop = Loop(agent, steps=20, sampler=Mixed(fresh=0.5), reuse=None)
    learner = VTrace(agent, learning_rate=0.01, optimizer="adam", entropy_cost=0.003, max_grad_norm=1.0)
    for _ in range(60):
        loop.play()
        while (batch := loop.replay.sample()) is not None:
            learner.train_step(batch)
    after = play(agent, 16, 20)
    assert learner.optimizer.updates > 100  # twice as many as from fresh sessions alone
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH


def test_the_loss_is_the_mean_over_rows_that_happened(agent, batch):
    batch.burn_in, batch.weights = 2, torch.rand(8)
    learner = VTrace(
        agent, discount=0.9, value_cost=0.3, entropy_cost=0.2, clip_rho=1.5, clip_pg_rho=1.2, reward_clip=0.5
    )
    loss, metrics = learner.loss(batch)
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    logits, values = outputs.policy[0].log_softmax(-1), outputs.values
    rhos = (logits[:-1].gather(-1, batch.actions[..., None])[..., 0] - batch.extras["behaviour_log_prob"]).exp()
    common = batch.rewards.clamp(max=0.5), 0.9 * (~batch.terminated).float(), (~batch.terminated).float(), values
    targets = returns.vtrace(rhos.log(), *common, clip_rho=1.5, clip_pg_rho=1.2)
    total, count = 0.0, 0
    for t in range(2, 10):
        for b in range(8):
            if batch.valid[t, b]:
                row = -logits[t, b, batch.actions[t, b]] * targets.advantages[t, b]
                row += 0.3 * 0.5 * (targets.values[t, b] - values[t, b]) ** 2
                row += 0.2 * (logits[t, b].exp() * logits[t, b]).sum()
                total, count = total + (batch.weights[b] * row).item(), count + 1
    assert 0 < count < 64
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert metrics["loss/total"].item() == loss.item()


def test_targets_and_ratios_carry_no_gradient(agent, batch):
    """The gradient is that of the loss with V-trace's results written in as numbers."""
    learner = VTrace(agent, reward_clip=None)
    learner.loss(batch)[0].backward()
    got = [parameter.grad.clone() for parameter in agent.network.parameters()]
    agent.network.zero_grad()
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    policy = agent.network.distribution((outputs.policy[0][:-1],))
    log_probs, values = policy.log_prob(batch.actions), outputs.values
    log_rhos = torch.tensor((log_probs - batch.extras["behaviour_log_prob"]).tolist())
    numbers = torch.tensor(values.tolist())
    result = returns.vtrace(log_rhos, batch.rewards, batch.discounts(0.99), batch.continues, numbers)
    rows = -log_probs * result.advantages + 0.25 * (result.values - values[:-1]) ** 2 - 0.01 * policy.entropy()
    rows[batch.valid].mean().backward()
    for mine, parameter in zip(got, agent.network.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_clipped_surrogate_stops_where_the_ratio_has_left_the_clip(agent, batch):
    """Row by row: the gradient of the policy's loss is that of min(ρ A, clip(ρ) A), with A of V-trace without ρ."""
    learner = VTrace(agent, surrogate_clip=0.1, reward_clip=None, value_cost=0.0, entropy_cost=0.0)
    learner.loss(batch)[0].backward()
    got = [parameter.grad.clone() for parameter in agent.network.heads.parameters()]
    agent.network.zero_grad()
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    policy = agent.network.distribution((outputs.policy[0][:-1],))
    log_rhos = policy.log_prob(batch.actions) - batch.extras["behaviour_log_prob"]
    advantages = returns.vtrace(
        log_rhos, batch.rewards, batch.discounts(0.99), batch.continues, outputs.values
    ).unweighted.tolist()
    terms, stopped = [], 0
    for t in range(10):
        for b in range(8):
            rho, advantage = log_rhos[t, b].exp(), advantages[t][b]
            outside = rho > 1.1 if advantage > 0 else (rho < 0.9 or rho > 3)
            if batch.valid[t, b]:
                stopped += bool(outside)
                terms.append(0 * rho if outside else -rho * advantage)
    assert 0 < stopped < len(terms)
    (sum(terms) / len(terms)).backward()
    for mine, parameter in zip(got, agent.network.heads.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-4)


def test_what_was_just_played_has_the_ratio_one():
    """Memory is restored and restarted in training just as in play, in the middle of episodes and at their ends."""
    agent, chains = agent_of(trunk=Window(2, MLP(8)), body=LSTM(8)), Chains(16)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.normal_()
    state, is_first = agent.initial_state(16), np.zeros(16, bool)
    for _ in range(3):
        batch, state, is_first = play_on(agent, chains, state, is_first, steps=7)
        assert not batch.valid.all()
        metrics = VTrace(agent).loss(batch)[1]
        assert metrics["vtrace/mean_rho"].item() == pytest.approx(1, abs=1e-5)


def test_reset_rows_teach_nothing(agent, batch):
    """Whatever was chosen, and however likely, on a row that did not happen: the gradient is the same to the bit."""
    learner, gradients = VTrace(agent), []
    for poison in (0.0, 5.0):
        batch.actions = torch.where(batch.valid, batch.actions, int(poison > 0))
        batch.extras["behaviour_log_prob"] = torch.where(batch.valid, batch.extras["behaviour_log_prob"], -poison)
        agent.network.zero_grad()
        learner.loss(batch)[0].backward()
        gradients.append([parameter.grad.clone() for parameter in agent.network.parameters()])
    assert not batch.valid.all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_joint_action_is_clipped_as_a_whole():
    """Two parts with ratios e^2 and e^-2 have the ratio 1; the mean of clipped ones would be 0.57."""
    torch.manual_seed(0)
    space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    agent = TorchAgent(ModularNetwork(OBSERVED, space))
    steps, num_envs = 4, 3
    batch = play(agent_of(), num_envs, steps)
    batch.actions = (batch.actions, 1 - batch.actions)
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    parts = agent.network.distribution(tuple(leaf[:-1] for leaf in outputs.policy)).parts
    one, other = (part.log_prob(leaf).detach() for part, leaf in zip(parts, batch.actions, strict=True))
    batch.extras["behaviour_log_prob"] = (one - 2) + (other + 2)
    assert VTrace(agent).loss(batch)[1]["vtrace/mean_rho"].item() == pytest.approx(1, abs=1e-5)


def test_metrics(agent, batch):
    learner = VTrace(agent)
    metrics = learner.train_step(batch)
    assert set(metrics) == {
        "loss/policy",
        "loss/value",
        "loss/entropy",
        "loss/total",
        "grad_norm",
        "policy/entropy",
        "vtrace/mean_rho",
        "value/explained_variance",
    }
    assert all(metric.ndim == 0 and not metric.requires_grad and metric.isfinite() for metric in metrics.values())
    assert 0 < metrics["vtrace/mean_rho"] < 1
    assert metrics["policy/entropy"].item() == pytest.approx(np.log(2), abs=0.01)


def test_settings_change_the_update(agent, batch):
    batch.rewards *= 3
    base = {"loss/total": VTrace(agent).loss(batch)[0].item()}
    for name, setting in {
        "discount": 0.5,
        "value_cost": 2.0,
        "entropy_cost": 1.0,
        "clip_rho": 0.5,
        "clip_pg_rho": 0.5,
        "lambda_": 0.5,
        "reward_clip": None,
        "normalize_advantages": True,
        "surrogate_clip": 0.1,
        "return_scale": True,
    }.items():
        base[name] = VTrace(agent, **{name: setting}).loss(batch)[0].item()
    assert len(set(base.values())) == len(base)
    assert VTrace(agent, total_updates=10, learning_rate=1.0).optimizer.total_updates == 10


def test_autocast_learns_the_same_direction(agent, batch):
    learner, gradients = VTrace(agent), []
    for enabled in (False, True):
        agent.network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = learner.loss(batch)
            assert loss.dtype == torch.float32
            loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in agent.network.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
