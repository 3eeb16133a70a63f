"""Losses: the formulas, sums that add up, and what gets no gradient."""

import math

import pytest
import torch

from tinyverse import losses

T, B, A = 4, 3, 5


@pytest.fixture
def rows():
    torch.manual_seed(0)
    mask = torch.ones(T, B)
    mask[1, 0] = mask[3, 2] = 0
    return torch.randn(T, B), torch.randn(T, B), mask


def alive(mask):
    return [(t, b) for t in range(T) for b in range(B) if mask[t, b]]


def dual_clipped(ratio: float, advantage: float) -> float:
    once = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    return max(once, 3 * advantage) if advantage < 0 else once


FORMULAS = {
    losses.policy_gradient: lambda x, y: -x * y,
    losses.value: lambda x, y: 0.5 * (x - y) ** 2,
    losses.huber: lambda x, y: 0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5,
    losses.clipped_policy_gradient: lambda x, y: -dual_clipped(math.exp(x), y),
}


@pytest.mark.parametrize("loss", FORMULAS, ids=lambda loss: loss.__name__)
def test_formula(loss, rows):
    x, y, mask = rows
    expected = sum(FORMULAS[loss](x[t, b].item(), y[t, b].item()) for t, b in alive(mask))
    assert loss(x, y, mask).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", FORMULAS, ids=lambda loss: loss.__name__)
def test_gradient_reaches_only_what_is_learned_and_only_live_rows(loss, rows):
    x, y, mask = rows
    x, y = x.requires_grad_(), y.requires_grad_()
    loss(x, y, mask).backward()
    assert y.grad is None
    assert (x.grad[mask == 0] == 0).all()
    assert (x.grad[mask == 1] != 0).any()


@pytest.mark.parametrize("loss", FORMULAS, ids=lambda loss: loss.__name__)
def test_sums_of_parts_are_the_sum(loss, rows):
    whole = loss(*rows)
    parts = loss(*(part[:, :1] for part in rows)) + loss(*(part[:, 1:] for part in rows))
    torch.testing.assert_close(whole, parts)


def test_entropy_and_kl(rows):
    _, _, mask = rows
    p, q = torch.randn(2, T, B, A).softmax(-1)
    expected = sum((p[t, b] * (p[t, b] / q[t, b]).log()).sum().item() for t, b in alive(mask))
    assert losses.categorical_kl(p.log() + 3, q.log(), mask).item() == pytest.approx(expected, rel=1e-4)
    assert losses.categorical_kl(p.log(), p.log(), mask).item() == pytest.approx(0, abs=1e-6)
    assert losses.entropy(torch.full((T, B), 0.5), mask).item() == pytest.approx(-0.5 * mask.sum().item())


def test_means_and_normalising_look_at_live_rows_only(rows):
    x, _, mask = rows
    live = x[mask == 1]
    x[mask == 0] = 1e6
    assert losses.masked_mean(x, mask).item() == pytest.approx(live.mean().item(), rel=1e-5)
    expected = (live - live.mean()) / live.std(correction=0)
    torch.testing.assert_close(losses.normalize(x, mask)[mask == 1], expected)
    assert losses.masked_mean(x, torch.zeros(T, B)) == 0


def test_a_ratio_far_off_pushes_no_harder_than_the_bound():
    log_rhos = torch.tensor([[8.0]], requires_grad=True)
    loss = losses.clipped_policy_gradient(log_rhos, torch.tensor([[-1.0]]), torch.ones(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(3.0)
    assert log_rhos.grad.item() == 0
