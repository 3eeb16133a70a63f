"""Returns: value targets and advantages, as pure functions on time-first tensors.

Sessions may hold several episodes and reset rows. All functions handle this by one convention:

    discounts  γ, and 0 where the episode terminated: there is no next state to bootstrap from
    continues  1, and 0 where the episode ended in any way: nothing flows back over that row
    values     [T+1, B] V(o[t]); after a time limit values[t+1] is V of the true last observation of the episode

The row after an end is the reset, which is not a transition. Its result is meaningless and comes from the next episode.
A `continues` of 0 keeps it out of all earlier rows, and a loss must mask the row itself (`Batch.mask`).

No gradient flows through any result.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tinyverse.core.errors import SpecError


class VTraceReturns(NamedTuple):
    """The results of `vtrace`."""

    values: Tensor  # [T, B] v_s, the targets of the value function
    advantages: Tensor  # [T, B] of the policy gradient, multiplied by ρ
    unweighted: Tensor  # [T, B] the same without ρ, for losses that multiply by the ratio themselves


@torch.no_grad()
def n_step(rewards: Tensor, discounts: Tensor, continues: Tensor, values: Tensor, n: int) -> Tensor:
    """n-step returns (Sutton & Barto 2018, eq. 7.1), shorter where the episode or the slice ends earlier.

        G_t = r_t + γ r_{t+1} + … + γ^{n−1} r_{t+n−1} + γ^n V(o_{t+n})

    Args:
        rewards, discounts, continues: [T, B].
        values: [T+1, B].
        n: the largest number of rewards; T or more uses all rewards of the slice.
    Returns:
        [T, B].
    Raises:
        SpecError: the shapes do not fit.
    """
    _check("n_step", values, rewards=rewards, discounts=discounts, continues=continues)
    returns = values
    for _ in range(min(n, len(rewards))):
        following = torch.where(continues > 0, returns[1:], values[1:])
        returns = torch.cat([rewards + discounts * following, values[-1:]])
    return returns[:-1]


@torch.no_grad()
def gae(rewards: Tensor, discounts: Tensor, continues: Tensor, values: Tensor, lambda_: float = 0.95) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16).

        Â_t = Σ_l (γλ)^l δ_{t+l},    δ_t = r_t + γ V(o_{t+1}) − V(o_t)

    Args:
        rewards, discounts, continues: [T, B].
        values: [T+1, B].
        lambda_: λ; 0 gives the one-step error, 1 the whole return minus V.
    Returns:
        [T, B].
    Raises:
        SpecError: the shapes do not fit.
    """
    _check("gae", values, rewards=rewards, discounts=discounts, continues=continues)
    errors = rewards + discounts * values[1:] - values[:-1]
    return _discounted_sums(errors, discounts * continues * lambda_)


@torch.no_grad()
def lambda_returns(
    rewards: Tensor, discounts: Tensor, continues: Tensor, values: Tensor, lambda_: float = 0.95
) -> Tensor:
    """λ-returns (Sutton & Barto 2018, eq. 12.18): n-step returns of every n, weighted by (1−λ) λ^{n−1}.

        G_t = r_t + γ ((1−λ) V(o_{t+1}) + λ G_{t+1})

    Equals `gae` + V, with the same arguments. Returns [T, B].
    """
    return gae(rewards, discounts, continues, values, lambda_) + values[:-1]


@torch.no_grad()
def vtrace(
    log_rhos: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    continues: Tensor,
    values: Tensor,
    *,
    clip_rho: float = 1.0,
    clip_pg_rho: float = 1.0,
    clip_c: float = 1.0,
    lambda_: float = 1.0,
) -> VTraceReturns:
    """V-trace targets and policy-gradient advantages (Espeholt et al. 2018, IMPALA, eq. 1 and section 4.2).

        v_s = V(o_s) + Σ_{t≥s} γ^{t−s} (Π_{i=s}^{t−1} c_i) ρ_t (r_t + γ V(o_{t+1}) − V(o_t))
        ρ_t = min(clip_rho, π/μ),   c_t = λ min(clip_c, π/μ)
        advantage_t = min(clip_pg_rho, π/μ) (r_t + γ v_{t+1} − V(o_t))

    Where a time limit ended the episode, v_{t+1} belongs to the next one, and V(o_{t+1}) replaces it.

    Args:
        log_rhos: [T, B] log π(a|o) − log μ(a|o) of the whole action: add up the parts of a joint action first.
        rewards, discounts, continues: [T, B].
        values: [T+1, B].
        clip_rho, clip_pg_rho, clip_c, lambda_: see the formulas.
    Raises:
        SpecError: the shapes do not fit.
    """
    _check("vtrace", values, log_rhos=log_rhos, rewards=rewards, discounts=discounts, continues=continues)
    rhos = log_rhos.exp()
    errors = rhos.clamp(max=clip_rho) * (rewards + discounts * values[1:] - values[:-1])
    decays = discounts * continues * lambda_ * rhos.clamp(max=clip_c)
    targets = values[:-1] + _discounted_sums(errors, decays)
    following = torch.where(continues > 0, torch.cat([targets[1:], values[-1:]]), values[1:])
    unweighted = rewards + discounts * following - values[:-1]
    return VTraceReturns(targets, rhos.clamp(max=clip_pg_rho) * unweighted, unweighted)


@torch.no_grad()
def double_q(
    rewards: Tensor,
    discounts: Tensor,
    continues: Tensor,
    online: Tensor,
    target: Tensor,
    n: int = 1,
    *,
    squash: float | None = None,
) -> Tensor:
    """n-step targets of double Q-learning (van Hasselt et al. 2016, eq. 4; Kapturowski et al. 2019, R2D2, eq. 1).

        y_t = h( Σ_{k<n} γ^k r_{t+k} + γ^n h⁻¹( Q⁻(o_{t+n}, argmax_a Q(o_{t+n}, a)) ) )

    n is smaller where the episode or the slice ends earlier.

    Args:
        rewards, discounts, continues: [T, B].
        online: [T+1, B, A] Q, which chooses the action; for plain Q-learning pass `target`.
        target: [T+1, B, A] Q⁻ of the target network, which values the action.
        n: rewards before the bootstrap.
        squash: ε of h; None: h is the identity.
    Returns:
        [T, B].
    Raises:
        SpecError: the shapes do not fit.
    """
    if online.shape != target.shape or online.ndim != 3:
        raise SpecError(
            f"double_q got Q of shapes {tuple(online.shape)} and {tuple(target.shape)}, wanted [T+1, B, A]."
        )
    values = target.gather(-1, online.argmax(-1, keepdim=True))[..., 0]
    if squash is None:
        return n_step(rewards, discounts, continues, values, n)
    return squashed(n_step(rewards, discounts, continues, unsquashed(values, squash), n), squash)


def squashed(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """h(x) = sign(x) (√(|x| + 1) − 1) + εx, elementwise: compresses large returns (Pohlen et al. 2018, section 3.2).

    This form avoids the difference of two numbers near 1, which would lose the digits of small returns.
    """
    return x / ((x.abs() + 1).sqrt() + 1) + epsilon * x


def unsquashed(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """h⁻¹(x), elementwise: the inverse of `squashed` (Pohlen et al. 2018, proposition A.2; for ε > 0).

    h⁻¹(x) = sign(x) (((√(1 + 4ε(|x| + 1 + ε)) − 1) / 2ε)² − 1)

    With u the root minus 1, εu² + (1 + 2ε)u = |x|, whose solution in this form has all digits of small x.
    """
    b = 1 + 2 * epsilon
    u = 2 * x.abs() / (b + (b * b + 4 * epsilon * x.abs()).sqrt())
    return x.sign() * u * (u + 2)


def _discounted_sums(terms: Tensor, decays: Tensor) -> Tensor:
    """Returns [T, B] x_t + decay_t (x_{t+1} + decay_{t+1} (…)), computed from the last row backwards."""
    total = torch.zeros_like(terms[0])
    sums = []
    for term, decay in zip(reversed(terms.unbind()), reversed(decays.unbind()), strict=True):
        total = torch.addcmul(term, decay, total)
        sums.append(total)
    return torch.stack(sums[::-1])


def _check(name: str, values: Tensor, **rows: Tensor) -> None:
    steps, columns = rows["rewards"].shape if rows["rewards"].ndim == 2 else (0, 0)
    wrong = {key: tuple(tensor.shape) for key, tensor in rows.items() if tensor.shape != (steps, columns)}
    if values.shape != (steps + 1, columns):
        wrong["values"] = tuple(values.shape)
    if wrong or not steps:
        raise SpecError(
            f"{name} got rewards of shape {tuple(rows['rewards'].shape)} with {wrong or 'no rows'}. It wants [T, B] "
            "with T ≥ 1 for all, but [T+1, B] for values: the last row is the observation after the last step."
        )
