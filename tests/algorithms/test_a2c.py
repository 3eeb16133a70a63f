"""A2C: its loss written out row by row in float64, what carries no gradient, and that it learns."""

import math

import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import LENGTH, OBSERVED, agent_of, play
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.a2c import A2C
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks import LSTM, MLP, ModularNetwork, Outputs

torch.set_num_threads(1)
STEPS, GAMES, CHOICES, GAMMA = 12, 6, 3, 0.9


class Spoken(torch.nn.Module):
    """A network that says what it was told to, in float64, so that a loss can be compared to many digits."""

    def __init__(self, seed=0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        shape = STEPS + 1, GAMES
        self.logits = torch.nn.Parameter(torch.randn(*shape, CHOICES, generator=random, dtype=torch.float64))
        self.spoken = torch.nn.Parameter(torch.randn(shape, generator=random, dtype=torch.float64))

    def forward(self, observations, state, is_first):
        return Outputs((self.logits,), _Double(self.spoken)), state

    def distribution(self, policy):
        return ModularNetwork(OBSERVED, spaces.Discrete(CHOICES)).distribution(policy)


class _Double(torch.Tensor):
    """Values that stay float64 where the code makes sure that they are not less than float32."""

    @staticmethod
    def __new__(cls, tensor):
        return tensor.as_subclass(cls)

    def float(self):
        return self.as_subclass(torch.Tensor)


def random_batch(seed):
    """Any ends, reset rows after them, rewards and importance weights."""
    random = torch.Generator().manual_seed(seed)
    terminated, truncated = (torch.zeros(STEPS, GAMES, dtype=torch.bool) for _ in range(2))
    valid = torch.ones(STEPS, GAMES, dtype=torch.bool)
    for t in range(STEPS):
        for b in range(GAMES):
            valid[t, b] = t == 0 or not (terminated[t - 1, b] or truncated[t - 1, b])
            dice = torch.rand((), generator=random).item()
            terminated[t, b] = valid[t, b] and dice < 0.15
            truncated[t, b] = valid[t, b] and 0.15 <= dice < 0.3
    rewards = torch.randn(STEPS, GAMES, generator=random, dtype=torch.float64) * 2 * valid
    return Batch(
        observations=torch.zeros(STEPS + 1, GAMES), actions=torch.randint(CHOICES, (STEPS, GAMES), generator=random),
        rewards=rewards, terminated=terminated, truncated=truncated, valid=valid, initial_state=(), extras={},
        weights=torch.rand(GAMES, generator=random, dtype=torch.float64), lag=torch.zeros(GAMES), slots=torch.arange(GAMES),
    )  # fmt: skip


def returns_after(batch, values, b, t, most):
    """The n-step returns G^1, G^2 … G^most from row t, each as the sum in the book; fewer where the episode is shorter."""
    total, found = 0.0, []
    for k in range(min(most, STEPS - t)):
        row = t + k
        total += GAMMA**k * batch.rewards[row, b].item()
        tail = 0.0 if batch.terminated[row, b] else GAMMA ** (k + 1) * values[row + 1, b].item()
        found.append(total + tail)
        if batch.terminated[row, b] or batch.truncated[row, b]:
            break
    return found


def naive(batch, network, kind, normalize, clip):
    """The loss by loops: kind is ("n", n) or ("lambda", λ)."""
    logits, values = network.logits.detach(), network.spoken.detach()
    batch.rewards = batch.rewards.clamp(-clip, clip)
    rows = []
    for t in range(STEPS):
        for b in range(GAMES):
            if not batch.valid[t, b]:
                continue
            every = returns_after(batch, values, b, t, STEPS)
            if kind[0] == "n":
                target = returns_after(batch, values, b, t, kind[1])[-1]
            else:  # Sutton & Barto 2018, eq. 12.3
                shares = [(1 - kind[1]) * kind[1] ** k for k in range(len(every) - 1)]
                target = sum(x * g for x, g in zip(shares, every)) + kind[1] ** (len(every) - 1) * every[-1]
            exps = [math.exp(x) for x in logits[t, b].tolist()]
            probs = [x / sum(exps) for x in exps]
            rows.append((t, b, target, target - values[t, b].item(), probs))
    advantages = [row[3] for row in rows]
    if normalize:
        mean = sum(advantages) / len(rows)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages) / len(rows))
        advantages = [(a - mean) / (deviation + 1e-8) for a in advantages]
    total = 0.0
    for (t, b, target, _, probs), advantage in zip(rows, advantages, strict=True):
        row = -advantage * math.log(probs[batch.actions[t, b]])
        row += 0.4 * 0.5 * (target - values[t, b].item()) ** 2
        row += 0.2 * sum(p * math.log(p) for p in probs)
        total += batch.weights[b].item() * row
    return total / len(rows)


@pytest.mark.parametrize("kind", [("lambda", 0.0), ("lambda", 0.7), ("lambda", 1.0), ("n", 1), ("n", 3), ("n", 99)])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_row_by_row(kind, normalize):
    for seed in range(3):
        batch, agent = random_batch(seed), TorchAgent(Spoken(seed))
        options = {"n_step": kind[1]} if kind[0] == "n" else {"lambda_": kind[1]}
        learner = A2C(
            agent, discount=GAMMA, value_cost=0.4, entropy_cost=0.2, reward_clip=1.5,
            normalize_advantages=normalize, **options,
        )  # fmt: skip
        loss, metrics = learner.loss(batch)
        assert not batch.valid.all() and batch.truncated.any() and (batch.rewards.abs() > 1.5).any()
        assert loss.item() == pytest.approx(naive(batch, agent.network, kind, normalize, 1.5), abs=1e-6)
        assert metrics["loss/total"].item() == loss.item()


def test_advantages_and_targets_carry_no_gradient():
    """The slope of the loss in V is the regression's alone: (V − G) · value_cost, and the bootstrap row has none."""
    batch, agent = random_batch(0), TorchAgent(Spoken())
    learner = A2C(agent, discount=GAMMA, value_cost=0.4, n_step=3)
    learner.loss(batch)[0].backward()
    values, rows = agent.network.spoken.detach(), int(batch.valid.sum())
    for t in range(STEPS):
        for b in range(GAMES):
            target = returns_after(batch, values, b, t, 3)[-1]
            slope = 0.4 * (values[t, b].item() - target) * batch.weights[b].item() / rows * bool(batch.valid[t, b])
            assert agent.network.spoken.grad[t, b].item() == pytest.approx(slope, abs=1e-7)
    assert agent.network.spoken.grad[-1].abs().max() == 0 and agent.network.logits.grad[-1].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"n_step": 5}, {"return_scale": True, "normalize_advantages": True}])
def test_it_learns_to_walk_the_chain(options):
    agent = agent_of(trunk=MLP(16))
    learner = A2C(agent, learning_rate=0.01, optimizer="adam", entropy_cost=0.003, **options)
    before = play(agent, 16, 20)
    for _ in range(80):
        learner.train_step(play(agent, 16, 20))
    after = play(agent, 16, 20)
    assert before.rewards.sum() / before.valid.sum() < 0.15
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH


def test_memory_learns_too():
    agent = agent_of(body=LSTM(16))
    learner = A2C(agent, learning_rate=0.01, optimizer="adam", entropy_cost=0.003)
    for _ in range(80):
        metrics = learner.train_step(play(agent, 16, 20))
    after = play(agent, 16, 20)
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH
    assert all(metric.ndim == 0 and metric.isfinite() and not metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize("wrong", [{"n_step": 0}, {"n_step": 3, "lambda_": 0.9}])
def test_contradictions_are_refused(wrong):
    with pytest.raises(SettingsError, match="n_step=.*give either"):
        A2C(agent_of(), **wrong)


def test_settings_change_the_update():
    agent = agent_of()
    batch = play(agent, 8, 10)
    batch.rewards *= 3
    found = {"nothing": A2C(agent).loss(batch)[0].item()}
    for name, setting in {
        "discount": 0.5, "lambda_": 0.5, "n_step": 2, "value_cost": 2.0, "entropy_cost": 1.0, "reward_clip": 1.0,
        "return_scale": True, "normalize_advantages": True,
    }.items():  # fmt: skip
        learner = A2C(agent, **{name: setting})
        found[name] = learner.loss(batch)[0].item()
    assert len(set(found.values())) == len(found)
    assert A2C(agent, total_updates=10).optimizer.total_updates == 10
