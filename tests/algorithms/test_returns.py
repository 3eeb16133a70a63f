"""Returns against the papers' sums, written out episode by episode."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from tinyverse.algorithms import returns
from tinyverse.core.errors import SpecError

GAMMA = 0.9
SEEDS = range(25)


class Segment(NamedTuple):
    rewards: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    valid: torch.Tensor
    values: torch.Tensor
    log_rhos: torch.Tensor

    @property
    def discounts(self):
        return GAMMA * (~self.terminated).double()

    @property
    def continues(self):
        return (~(self.terminated | self.truncated)).double()

    @property
    def common(self):
        return self.rewards, self.discounts, self.continues, self.values


class Episode(NamedTuple):
    """One episode's rows in one environment: `values` has one more entry than `rewards`, 0 after a death."""

    rows: list
    game: int
    rewards: list
    values: list
    rhos: list


def segment(seed, steps=17, num_envs=5, p_end=0.15):
    """Random rows as NEXT_STEP gives them: after an end comes one reset row of reward 0."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, steps, num_envs)) < p_end
    valid = np.ones((steps, num_envs), bool)
    resetting = rng.random(num_envs) < 0.2
    for t in range(steps):
        valid[t] = ~resetting
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
        resetting = terminated[t] | truncated[t]
    arrays = rng.normal(size=(steps, num_envs)) * valid, terminated, truncated, valid
    return Segment(
        *map(torch.tensor, (*arrays, rng.normal(size=(steps + 1, num_envs)), rng.normal(size=(steps, num_envs))))
    )


def episodes(given):
    steps, num_envs = given.rewards.shape
    for game in range(num_envs):
        rows = []
        for t in range(steps):
            if given.valid[t, game]:
                rows.append(t)
            dead = bool(given.terminated[t, game])
            if rows and (dead or given.truncated[t, game] or t == steps - 1 or not given.valid[t, game]):
                values = [given.values[i, game].item() for i in rows] + [given.values[rows[-1] + 1, game].item()]
                if dead:
                    values[-1] = 0.0
                rewards = [given.rewards[i, game].item() for i in rows]
                yield Episode(rows, game, rewards, values, [given.log_rhos[i, game].exp().item() for i in rows])
                rows = []


def assert_per_episode(result, given, function, tolerance=1e-9):
    count = 0
    for episode in episodes(given):
        for s, t in enumerate(episode.rows):
            assert result[t, episode.game].item() == pytest.approx(function(episode, s), abs=tolerance)
            count += 1
    assert count == given.valid.sum()


def naive_n_step(e, s, n):
    n = min(n, len(e.rewards) - s)
    return sum(GAMMA**k * e.rewards[s + k] for k in range(n)) + GAMMA**n * e.values[s + n]


def naive_lambda(e, s, lambda_):
    longest = len(e.rewards) - s
    shorter = sum(lambda_ ** (n - 1) * naive_n_step(e, s, n) for n in range(1, longest))
    return (1 - lambda_) * shorter + lambda_ ** (longest - 1) * naive_n_step(e, s, longest)


def error(e, t):
    return e.rewards[t] + GAMMA * e.values[t + 1] - e.values[t]


def naive_gae(e, s, lambda_):
    return sum((GAMMA * lambda_) ** (t - s) * error(e, t) for t in range(s, len(e.rewards)))


def naive_vs(e, s, clip_rho, clip_c, lambda_):
    total = e.values[s]
    for t in range(s, len(e.rewards)):
        product = np.prod([lambda_ * min(clip_c, e.rhos[i]) for i in range(s, t)])
        total += GAMMA ** (t - s) * product * min(clip_rho, e.rhos[t]) * error(e, t)
    return total


def naive_advantage(e, s, clip_rho, clip_pg_rho, clip_c, lambda_):
    last = s + 1 == len(e.rewards)
    following = e.values[-1] if last else naive_vs(e, s + 1, clip_rho, clip_c, lambda_)
    return min(clip_pg_rho, e.rhos[s]) * (e.rewards[s] + GAMMA * following - e.values[s])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [1, 3, 100])
def test_n_step(seed, n):
    given = segment(seed)
    assert_per_episode(returns.n_step(*given.common, n), given, lambda e, s: naive_n_step(e, s, n))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_lambda_returns_and_gae(seed, lambda_):
    given = segment(seed)
    result = returns.lambda_returns(*given.common, lambda_)
    assert_per_episode(result, given, lambda e, s: naive_lambda(e, s, lambda_))
    assert_per_episode(returns.gae(*given.common, lambda_), given, lambda e, s: naive_gae(e, s, lambda_))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rho", "pg", "c", "lambda_"), [(1, 1, 1, 1), (2.0, 1.5, 0.8, 0.9), (1e9, 1e9, 1e9, 1)])
def test_vtrace(seed, rho, pg, c, lambda_):
    given = segment(seed)
    result = returns.vtrace(given.log_rhos, *given.common, clip_rho=rho, clip_pg_rho=pg, clip_c=c, lambda_=lambda_)
    assert_per_episode(result.values, given, lambda e, s: naive_vs(e, s, rho, c, lambda_))
    assert_per_episode(result.advantages, given, lambda e, s: naive_advantage(e, s, rho, pg, c, lambda_))


def test_on_policy_vtrace_is_the_n_step_return():
    given = segment(0)
    result = returns.vtrace(torch.zeros_like(given.rewards), *given.common)
    returned = returns.n_step(*given.common, len(given.rewards))
    torch.testing.assert_close(result.values[given.valid], returned[given.valid])


FUNCTIONS = {
    "n_step": lambda g, *rest: returns.n_step(g.rewards, *rest, n=5),
    "lambda": lambda g, *rest: returns.lambda_returns(g.rewards, *rest),
    "gae": lambda g, *rest: returns.gae(g.rewards, *rest),
    "vs": lambda g, *rest: returns.vtrace(g.log_rhos, g.rewards, *rest).values,
    "advantages": lambda g, *rest: returns.vtrace(g.log_rhos, g.rewards, *rest).advantages,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
def test_the_mistakes_would_show(function):
    """So that the tests above have teeth: not cutting, and a time limit taken for a death, err by a lot."""
    given = segment(1, steps=40, num_envs=20)
    right = function(given, given.discounts, given.continues, given.values)
    uncut = function(given, given.discounts, torch.ones_like(given.continues), given.values)
    dead = function(given, given.discounts * given.continues, given.continues, given.values)
    assert (right - uncut)[given.valid].abs().max() > 0.5
    assert (right - dead)[given.valid].abs().max() > 0.5


@every_function
def test_nothing_leaks_from_the_next_episode(function):
    given = segment(2)
    given.terminated[:], given.truncated[:], given.valid[:] = False, False, True
    given.truncated[4], given.valid[5], given.rewards[5] = True, False, 0
    before = function(given, given.discounts, given.continues, given.values)
    poisoned = given._replace(values=given.values.clone(), rewards=given.rewards.clone())
    poisoned.values[6:], poisoned.rewards[6:] = -42.42, -42.42
    after = function(poisoned, given.discounts, given.continues, poisoned.values)
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[6:], after[6:])


def test_targets_carry_no_gradient():
    given = segment(3)
    values, log_rhos = given.values.requires_grad_(), given.log_rhos.requires_grad_()
    result = returns.vtrace(log_rhos, given.rewards, given.discounts, given.continues, values)
    others = [function(given, given.discounts, given.continues, values) for function in FUNCTIONS.values()]
    assert not any(tensor.requires_grad for tensor in (*result, *others))


@every_function
def test_shapes_are_checked(function):
    given = segment(4)
    with pytest.raises(SpecError, match=r"values.*\(17, 5\)"):
        function(given, given.discounts, given.continues, given.values[:-1])
    with pytest.raises(SpecError, match=r"discounts.*\(17, 1\)"):
        function(given, given.discounts[:, :1], given.continues, given.values)
    flat = given._replace(rewards=given.rewards[:, 0])
    with pytest.raises(SpecError, match="rewards"):
        function(flat, given.discounts, given.continues, given.values)


def test_the_inverse_of_the_squashing_has_all_digits_near_0():
    x = torch.tensor([0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 300.0, 1e6])
    for sign in (1, -1):
        np.testing.assert_allclose(returns.unsquashed(returns.squashed(sign * x)), sign * x, rtol=3e-6)
