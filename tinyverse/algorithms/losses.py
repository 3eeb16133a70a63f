"""Losses: each is a masked *sum* over rows, so that losses of slices and ranks add up.

`mask` is [T, B] and 0 for rows to ignore; importance weights are multiplied into it (`batch.mask * batch.weights`). For
a mean, divide by `count` once, at the end. No gradient flows into targets and advantages.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tinyverse.core import distributed

LARGEST_LOG_RATIO = 60.0  # float32 overflows at 88.7; the ratio is to be multiplied yet


def masked_sum(terms: Tensor, mask: Tensor) -> Tensor:
    """Returns Σ mask · terms, a scalar. Both are [T, B]."""
    return (terms * mask).sum()


def count(mask: Tensor) -> Tensor:
    """Returns Σ mask, at least 1, 0-d: the divisor that turns a masked sum into a mean.

    With several ranks it is the mean over ranks. They average their gradients, so that Σ over a rank's rows / `count`
    averages to the mean over the rows of all ranks.
    """
    return distributed.total(mask.sum()).clamp(min=1) / distributed.size()


def masked_mean(terms: Tensor, mask: Tensor) -> Tensor:
    """Returns Σ mask · terms / Σ mask, 0-d, or 0 if the mask is 0. For metrics: it covers this rank's rows only."""
    return masked_sum(terms, mask) / mask.sum().clamp(min=1)


def normalize(advantages: Tensor, mask: Tensor) -> Tensor:
    """Returns advantages [T, B] with mean 0 and standard deviation 1 over the masked rows of all ranks."""
    rows = count(mask)
    centred = advantages - distributed.mean(masked_sum(advantages, mask)) / rows
    deviation = (distributed.mean(masked_sum(centred.square(), mask)) / rows).sqrt()
    return centred / (deviation + 1e-8)


def bounded(log_rhos: Tensor) -> Tensor:
    """Returns log ratios of at most LARGEST_LOG_RATIO: exp() of larger ones is infinite, which makes NaN even of masked rows."""
    return log_rhos.clamp(max=LARGEST_LOG_RATIO)


def policy_gradient(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Returns −Σ A log π(a|o), a scalar (Williams 1992, REINFORCE). All arguments are [T, B]."""
    return -masked_sum(log_probs * advantages.detach(), mask)


def clipped_policy_gradient(
    log_rhos: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2, bound: float | None = 3.0
) -> Tensor:
    """Returns −Σ min(ρ A, clip(ρ, 1−ε, 1+ε) A), a scalar (Schulman et al. 2017, PPO, eq. 7).

    Where A < 0 the terms are never below `bound` · A (Ye et al. 2020, dual-clip PPO), because ρ is unbounded for
    sessions of older weights.

    Args:
        log_rhos: [T, B] log π(a|o) − log μ(a|o).
        advantages, mask: [T, B].
        clip: ε.
        bound: of the dual clip, above 1; None: no bound.
    """
    rhos, advantages = bounded(log_rhos).exp(), advantages.detach()
    terms = torch.minimum(rhos * advantages, rhos.clamp(1 - clip, 1 + clip) * advantages)
    if bound is not None:
        terms = torch.where(advantages < 0, torch.maximum(terms, bound * advantages), terms)
    return -masked_sum(terms, mask)


def value(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Returns ½ Σ (target − V)², a scalar. All arguments are [T, B]."""
    return 0.5 * masked_sum((targets.detach() - values).square(), mask)


def clipped_value(values: Tensor, old: Tensor, targets: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Returns ½ Σ max((target − V)², (target − V_clipped)²), a scalar, where V_clipped is within `clip` of `old`.

    The value loss of OpenAI's PPO (Dhariwal et al. 2017, Baselines). `values`, `old`, `targets` and `mask` are [T, B].
    With `clip=None` it equals `value`.
    """
    if clip is None:
        return value(values, targets, mask)
    near, targets = old + (values - old).clamp(-clip, clip), targets.detach()
    return 0.5 * masked_sum(torch.maximum((targets - values).square(), (targets - near).square()), mask)


def huber(values: Tensor, targets: Tensor, mask: Tensor, delta: float = 1.0) -> Tensor:
    """Returns Σ of ½ e² for |e| ≤ δ and δ(|e| − δ/2) beyond, a scalar (Huber 1964). All arguments are [T, B].

    With δ = 1 it clips the error as Mnih et al. 2015 do.
    """
    return masked_sum(functional.huber_loss(values, targets.detach(), reduction="none", delta=delta), mask)


def entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """Returns −Σ H(π) of [T, B], a scalar; minimised, it keeps the policy random (Mnih et al. 2016, section 4)."""
    return -masked_sum(entropies, mask)


@torch.no_grad()
def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Returns 1 − Var(target − V) / Var(target) over masked rows of [T, B], 0-d; 1 is perfect, a constant gives 0."""

    def variance(terms: Tensor) -> Tensor:
        return masked_mean((terms - masked_mean(terms, mask)).square(), mask)

    return 1 - variance(targets - values) / (variance(targets) + 1e-8)


@torch.no_grad()
def sequence_priorities(errors: Tensor, mask: Tensor, eta: float = 0.9) -> Tensor:
    """Returns priorities [B]: η max |δ| + (1 − η) mean |δ| over the masked rows of each slice.

    Source: Kapturowski et al. 2019, R2D2, section 2.3. Errors δ and mask are [T, B]. A slice whose mask is 0 gets
    priority 0.
    """
    sizes = errors.abs() * mask
    return eta * sizes.amax(0) + (1 - eta) * sizes.sum(0) / mask.sum(0).clamp(min=1)
