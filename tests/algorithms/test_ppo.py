"""PPO: its loss written out row by row, that it makes the steps it says, and that it learns."""

import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import LENGTH, OBSERVED, agent_of, play
from tinyverse.agents.agent import RandomAgent
from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import A2C, PPO, VTrace, returns
from tinyverse.core.errors import SettingsError
from tinyverse.networks import LSTM, MLP, ModularNetwork, Window
from tinyverse.networks.normalization import Normalized
from tinyverse.networks.squashed import SquashedActor

torch.set_num_threads(1)


@pytest.fixture
def agent():
    return agent_of()


@pytest.fixture
def batch(agent):
    batch = play(agent, num_envs=8, steps=10)
    batch.extras["behaviour_log_prob"] += 0.4 * torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    return batch


@pytest.mark.parametrize(
    "parts", [{"trunk": MLP(16)}, {"trunk": Window(2, MLP(16)), "body": LSTM(16)}], ids=["mlp", "lstm"]
)
def test_it_learns_to_walk_the_chain(parts):
    agent = agent_of(**parts)
    learner = PPO(agent, learning_rate=3e-3, entropy_cost=0.003, minibatches=2, epochs=3)
    before = play(agent, 16, 20)
    for _ in range(40):
        metrics = learner.train_step(play(agent, 16, 20))
    after = play(agent, 16, 20)
    assert before.rewards.sum() / before.valid.sum() < 0.15
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH
    assert metrics["value/explained_variance"] > 0.5


def test_the_loss_row_by_row(agent, batch):
    learner = PPO(
        agent, discount=0.9, lambda_=0.7, clip=0.1, value_clip=0.05, entropy_cost=0.2, normalize_advantages=False
    )
    whole = learner.estimates(batch)
    _, values, targets, advantages = whole
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    alive_values = outputs.values.detach()
    expected = returns.gae(batch.rewards, batch.discounts(0.9), batch.continues, alive_values, 0.7)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(targets, expected + values)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loss, metrics = learner.minibatch_loss(whole)
    outputs, _ = agent.network(batch.observations, (), batch.is_first)
    log_probs = outputs.policy[0].log_softmax(-1)
    total, rows, clipped, distance = 0.0, 0, 0, 0.0
    for t in range(10):
        for b in range(8):
            if not batch.valid[t, b]:
                continue
            log_rho = log_probs[t, b, batch.actions[t, b]] - batch.extras["behaviour_log_prob"][t, b]
            rho, advantage = log_rho.exp().item(), advantages[t, b].item()
            old, new = values[t, b].item(), outputs.values[t, b].item()
            target, near = targets[t, b].item(), min(max(new, old - 0.05), old + 0.05)
            total -= min(rho * advantage, min(max(rho, 0.9), 1.1) * advantage)
            total += 0.5 * 0.5 * max((target - new) ** 2, (target - near) ** 2)
            total += 0.2 * (log_probs[t, b].exp() * log_probs[t, b]).sum().item()
            rows, clipped, distance = rows + 1, clipped + (abs(rho - 1) > 0.1), distance + rho - 1 - log_rho.item()
    assert loss.item() == pytest.approx(total / rows, rel=1e-4)
    metrics = metrics()
    assert metrics["policy/clipped"].item() == pytest.approx(clipped / rows)
    assert metrics["policy/kl"].item() == pytest.approx(distance / rows, rel=1e-3)


def test_every_session_is_seen_once_an_epoch(agent, batch, monkeypatch):
    learner, seen = PPO(agent, epochs=3, minibatches=3), []
    monkeypatch.setattr(
        PPO,
        "minibatch_loss",
        lambda self, part, loss=PPO.minibatch_loss: (seen.append(part.batch.slots.tolist()), loss(self, part))[1],
    )
    learner.train_step(batch)
    assert [len(part) for part in seen] == [3, 3, 2] * 3
    for epoch in range(3):
        assert sorted(sum(seen[3 * epoch : 3 * epoch + 3], [])) == list(range(8))
    assert len({str(part) for part in seen}) > 3  # in a new order
    assert learner.optimizer.updates == 9


def test_one_minibatch_equals_the_whole_batch(agent, batch):
    learner = PPO(agent)
    estimates, order = learner.estimates(batch), torch.randperm(8)
    whole = learner.minibatch_loss(estimates)[0]
    shuffled = learner.minibatch_loss(estimates.columns(order))[0]
    assert shuffled.item() == pytest.approx(whole.item(), rel=1e-5)


def test_rate_and_clip_fall_together(agent, batch):
    learner = PPO(agent, epochs=2, minibatches=1, total_updates=2, learning_rate=1.0, clip=0.2)
    assert learner.optimizer.current_learning_rate == 1.0
    learner.optimizer.updates = 2  # after one of the two train steps
    assert learner.optimizer.current_learning_rate == 0.5
    whole = learner.estimates(batch)
    clipped = learner.minibatch_loss(whole)[1]()["policy/clipped"]
    learner.optimizer.updates = 0
    assert clipped > learner.minibatch_loss(whole)[1]()["policy/clipped"]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"minibatches": 0}])
def test_nothing_to_do_is_refused(agent, wrong):
    with pytest.raises(SettingsError, match="1 or more"):
        PPO(agent, **wrong)


def test_more_minibatches_than_sessions(agent, batch):
    with pytest.raises(SettingsError, match="8 sessions into 9 minibatches"):
        PPO(agent, minibatches=9).train_step(batch)


def test_a_joint_action():
    space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    agent = TorchAgent(ModularNetwork(OBSERVED, space))
    batch = play(agent_of(), 4, 6)
    batch.actions = (batch.actions, 1 - batch.actions)
    assert PPO(agent, minibatches=2).train_step(batch)["loss/total"].isfinite()


@pytest.mark.parametrize(("sessions", "minibatches"), [(12, 8), (9, 8), (10, 4), (8, 8), (5, 1)])
def test_there_are_as_many_minibatches_as_asked_and_the_rate_reaches_0(sessions, minibatches):
    agent = agent_of()
    learner = PPO(agent, epochs=2, minibatches=minibatches, total_updates=3, learning_rate=1e-3)
    for _ in range(3):
        learner.train_step(play(agent, sessions, 5))
    assert learner.optimizer.updates == 3 * 2 * minibatches and learner.optimizer.current_learning_rate == 0


def test_in_all_steps_on_a_batch_observations_are_normalised_alike():
    """Else the first ratios would compare the policy with itself on other inputs: at rate 0 they are all 1."""
    agent = agent_of(trunk=Normalized(MLP(16)))
    learner = PPO(agent, learning_rate=0.0, epochs=3, minibatches=4)
    for _ in range(2):
        metrics = learner.train_step(play(agent, 16, 20))
        assert metrics["policy/kl"].abs() < 1e-6 and metrics["policy/clipped"] == 0
    (layer,) = [module for module in agent.network.modules() if isinstance(module, Normalized)]
    assert layer.moments.count == 2 * 16 * 20 and layer.later is None


@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_huge_ratios_give_finite_gradients_and_none_where_rows_are_masked(agent, batch, mask):
    learner = PPO(agent, epochs=1)
    batch.extras["behaviour_log_prob"][0, 0] = -500.0
    batch.valid[0, 0] = bool(mask)
    metrics = learner.train_step(batch)
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in metrics.values())
    assert all(parameter.isfinite().all() for parameter in agent.network.parameters())


@pytest.mark.parametrize("algorithm", [A2C, PPO, VTrace])
def test_what_has_no_policy_and_value_is_refused(algorithm):
    box = spaces.Box(-1, 1, (2,))
    q = QAgent(ModularNetwork(OBSERVED, spaces.Discrete(2), trunk=MLP(8)), spaces.Discrete(2))
    squashed = TorchAgent(SquashedActor(OBSERVED, box, trunk=MLP(8)))
    for agent in (q, squashed, RandomAgent(None, box)):
        with pytest.raises(SettingsError, match=rf"{algorithm.__name__} learns .*, got a {type(agent).__name__}"):
            algorithm(agent)
