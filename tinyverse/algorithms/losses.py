"""Losses: what is to be made small, each as a masked *sum*, so that slices and ranks of any size add up.

`mask` is [T, B] and 0 on rows that did not happen; importance weights go into it (`batch.mask * batch.weights`).
Divide by `count` once, at the end, where a mean is wanted. Targets and advantages are constants here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tinyverse.core import distributed


def masked_sum(terms: Tensor, mask: Tensor) -> Tensor:
    """Σ mask · terms: [T, B] and [T, B] to a scalar."""
    return (terms * mask).sum()


def count(mask: Tensor) -> Tensor:
    """Σ mask, and at least 1: what a loss is divided by, 0-d.

    Of several ranks it is the mean over them. They average their gradients, and Σ over a rank's rows / `count` averages
    to the mean over the rows of all.
    """
    return distributed.total(mask.sum()).clamp(min=1) / distributed.size()


def masked_mean(terms: Tensor, mask: Tensor) -> Tensor:
    """Σ mask · terms / Σ mask, and 0 where nothing counts; for metrics, of this rank's rows alone."""
    return masked_sum(terms, mask) / mask.sum().clamp(min=1)


def normalize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages [T, B] shifted and scaled to mean 0 and deviation 1 over the rows that count, of all ranks."""
    rows = count(mask)
    centred = advantages - distributed.mean(masked_sum(advantages, mask)) / rows
    deviation = (distributed.mean(masked_sum(centred.square(), mask)) / rows).sqrt()
    return centred / (deviation + 1e-8)


def policy_gradient(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """−Σ A log π(a|o) (Williams 1992, REINFORCE). All [T, B]."""
    return -masked_sum(log_probs * advantages.detach(), mask)


def clipped_policy_gradient(
    log_rhos: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2, bound: float | None = 3.0
) -> Tensor:
    """−Σ min(ρ A, clip(ρ, 1−ε, 1+ε) A) (Schulman et al. 2017, PPO, eq. 7), and never below `bound` · A where A < 0.

    The bound (Ye et al. 2020, dual-clip PPO) is for sessions that older weights have played: there ρ may be anything.
    `log_rhos` [T, B] is log π/μ.
    """
    rhos, advantages = log_rhos.exp(), advantages.detach()
    terms = torch.minimum(rhos * advantages, rhos.clamp(1 - clip, 1 + clip) * advantages)
    if bound is not None:
        terms = torch.where(advantages < 0, torch.maximum(terms, bound * advantages), terms)
    return -masked_sum(terms, mask)


def value(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """½ Σ (target − V)². All [T, B]."""
    return 0.5 * masked_sum((targets.detach() - values).square(), mask)


def clipped_value(values: Tensor, old: Tensor, targets: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """½ Σ max((target − V)², (target − V_clipped)²), where V_clipped stays within `clip` of `old`; None: as `value`.

    The value loss of OpenAI's own PPO (Dhariwal et al. 2017, Baselines). All [T, B].
    """
    if clip is None:
        return value(values, targets, mask)
    near, targets = old + (values - old).clamp(-clip, clip), targets.detach()
    return 0.5 * masked_sum(torch.maximum((targets - values).square(), (targets - near).square()), mask)


def huber(values: Tensor, targets: Tensor, mask: Tensor, delta: float = 1.0) -> Tensor:
    """Σ of ½ e² near zero and δ(|e| − δ/2) beyond δ (Huber 1964; Mnih et al. 2015 clip the error so). All [T, B]."""
    return masked_sum(functional.huber_loss(values, targets.detach(), reduction="none", delta=delta), mask)


def entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """−Σ H(π): small when the policy keeps an open mind (Mnih et al. 2016, section 4). All [T, B]."""
    return -masked_sum(entropies, mask)


@torch.no_grad()
def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(target − V) / Var(target) over the rows that count: 1 is perfect, 0 no better than a constant."""

    def variance(terms: Tensor) -> Tensor:
        return masked_mean((terms - masked_mean(terms, mask)).square(), mask)

    return 1 - variance(targets - values) / (variance(targets) + 1e-8)


@torch.no_grad()
def sequence_priorities(errors: Tensor, mask: Tensor, eta: float = 0.9) -> Tensor:
    """[B] η max |δ| + (1 − η) mean |δ| over the rows that count (Kapturowski et al. 2019, R2D2, section 2.3).

    Errors and mask are [T, B]; a slice in which no row counts gets 0.
    """
    sizes = errors.abs() * mask
    return eta * sizes.amax(0) + (1 - eta) * sizes.sum(0) / mask.sum(0).clamp(min=1)
