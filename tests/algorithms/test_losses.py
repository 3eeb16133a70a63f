"""Losses: the formulas in float64, sums that add up, and what gets no gradient."""

import math

import numpy as np
import pytest
import torch

from tinyverse.algorithms import losses

T, B, A = 12, 5, 4
SEEDS = range(10)
CLIP, BOUND = 0.2, 3.0

each_seed = pytest.mark.parametrize("seed", SEEDS)


def rows(seed):
    """Two random [T, B], and a mask with a hole after each of some random ends of episodes."""
    random = np.random.default_rng(seed)
    mask = np.ones((T, B))
    mask[1:] -= random.random((T - 1, B)) < 0.15
    x, y = random.normal(size=(2, T, B)) * np.exp(random.normal(size=(2, 1, 1)))
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(mask)


def valid(mask):
    return [(t, b) for t in range(T) for b in range(B) if mask[t, b]]


def dual_clipped(log_rho, advantage):
    rho = math.exp(log_rho)
    once = min(rho * advantage, min(max(rho, 1 - CLIP), 1 + CLIP) * advantage)
    return max(once, BOUND * advantage) if advantage < 0 else once


def slope_of_dual_clipped(log_rho, advantage):
    """By the paper's cases: nothing is left to gain beyond the clip, nor to lose beyond the bound."""
    rho = math.exp(log_rho)
    outside = rho > 1 + CLIP if advantage > 0 else rho < 1 - CLIP or rho > BOUND
    return 0.0 if outside else rho * advantage


def clipped_value(value, target, old=0.25, clip=0.5):
    near = min(max(value, old - clip), old + clip)
    return 0.5 * max((target - value) ** 2, (target - near) ** 2)


def clipped_to_a_quarter(values, targets, mask):
    return losses.clipped_value(values, torch.full_like(values, 0.25), targets, mask, 0.5)


FORMULAS = {
    losses.policy_gradient: lambda x, y: -x * y,
    losses.value: lambda x, y: 0.5 * (x - y) ** 2,
    losses.huber: lambda x, y: 0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5,
    losses.clipped_policy_gradient: lambda x, y: -dual_clipped(x, y),
    clipped_to_a_quarter: clipped_value,
}
each_loss = pytest.mark.parametrize("loss", FORMULAS, ids=lambda loss: loss.__name__)


@each_seed
@each_loss
def test_formula(loss, seed):
    x, y, mask = rows(seed)
    expected = sum(FORMULAS[loss](x[t, b].item(), y[t, b].item()) for t, b in valid(mask))
    assert loss(x, y, mask).item() == pytest.approx(expected, rel=1e-9)
    single = loss(x.float(), y.float(), mask.float()).item()
    assert single == pytest.approx(expected, rel=1e-6, abs=1e-6 * mask.sum().item())


@each_loss
def test_gradient_reaches_only_what_is_learned_and_only_live_rows(loss):
    x, y, mask = rows(0)
    x, y = x.requires_grad_(), y.requires_grad_()
    loss(x, y, mask).backward()
    assert y.grad is None
    assert (x.grad[mask == 0] == 0).all()
    assert (x.grad[mask == 1] != 0).any()


@each_seed
def test_the_surrogate_pushes_only_within_the_clip(seed):
    log_rhos, advantages, mask = rows(seed)
    losses.clipped_policy_gradient(log_rhos.requires_grad_(), advantages, mask).backward()
    slopes = {(t, b): -slope_of_dual_clipped(log_rhos[t, b].item(), advantages[t, b].item()) for t, b in valid(mask)}
    assert 0 < sum(slope == 0 for slope in slopes.values()) < len(slopes)
    for place, slope in slopes.items():
        assert log_rhos.grad[place].item() == pytest.approx(slope, rel=1e-9)


@each_loss
def test_sums_of_parts_are_the_sum(loss):
    x, y, mask = rows(0)
    parts = [loss(x[:, part], y[:, part], mask[:, part]) for part in (slice(2), slice(2, None))]
    torch.testing.assert_close(loss(x, y, mask), sum(parts))


@each_seed
def test_without_a_clip_the_value_loss_is_the_plain_one(seed):
    values, targets, mask = rows(seed)
    assert losses.clipped_value(values, -values, targets, mask, None) == losses.value(values, targets, mask)


@each_seed
def test_entropy(seed):
    entropies, _, mask = rows(seed)
    expected = -sum(entropies[place].item() for place in valid(mask))
    assert losses.entropy(entropies, mask).item() == pytest.approx(expected, rel=1e-9)


@each_seed
def test_means_and_normalising_look_at_live_rows_only(seed):
    x, y, mask = rows(seed)
    live, targets = (of[mask == 1].numpy() for of in (x, y))
    unexplained = 1 - (targets - live).var() / (targets.var() + 1e-8)
    assert losses.explained_variance(x, y, mask).item() == pytest.approx(unexplained, rel=1e-9)
    x[mask == 0] = 1e6
    assert losses.masked_mean(x, mask).item() == pytest.approx(live.mean(), rel=1e-9)
    expected = (live - live.mean()) / (live.std() + 1e-8)
    np.testing.assert_allclose(losses.normalize(x, mask)[mask == 1], expected, rtol=1e-9)
    assert losses.masked_mean(x, torch.zeros(T, B)) == 0


def test_a_ratio_far_off_pushes_no_harder_than_the_bound():
    log_rhos = torch.tensor([[8.0]], requires_grad=True)
    loss = losses.clipped_policy_gradient(log_rhos, torch.tensor([[-1.0]]), torch.ones(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(3.0)
    assert log_rhos.grad.item() == 0


@pytest.mark.parametrize("log_rho", [89.0, 1e4, torch.inf])
def test_a_ratio_beyond_float32_gives_no_nan(log_rho):
    log_rhos = torch.tensor([[log_rho, 0.0]], requires_grad=True)
    for mask in ([[0.0, 1.0]], [[1.0, 1.0]]):
        loss = losses.clipped_policy_gradient(log_rhos, torch.tensor([[-1.0, 1.0]]), torch.tensor(mask), bound=None)
        (gradient,) = torch.autograd.grad(loss, log_rhos)
        assert loss.isfinite() and gradient.isfinite().all()
