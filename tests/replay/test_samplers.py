"""Samplers: which slots are drawn, in what order and how often."""

import numpy as np
import pytest
import torch

from tinyverse.core.errors import SettingsError
from tinyverse.replay.samplers import LEAST_PRIORITY, Fresh, Mixed, Prioritized, Sampler, Uniform, sampler_of

torch.set_num_threads(1)


def filled(sampler, count, seen=(), size=200):
    sampler.prepare(size, torch.device("cpu"))
    for slot in range(count):
        sampler.insert(slot, slot in seen)
    return sampler


def random(seed=0):
    return np.random.default_rng(seed)


def test_fresh_gives_each_once_and_in_order():
    sampler = filled(Fresh(), 6, seen={1})
    assert sampler.pending() == 5 and sampler.missing(5) == 0 and sampler.missing(7) == 2
    assert [*sampler.draw(2, random()), *sampler.draw(3, random())] == [0, 2, 3, 4, 5]
    assert sampler.pending() == 0 and sampler.missing(2) == 2


def test_fresh_forgets_what_is_gone_wherever_it_stood():
    sampler = filled(Fresh(), 5)
    for slot in (0, 3, 99):
        sampler.remove(slot)
    sampler.insert(0)
    assert list(sampler.draw(4, random())) == [1, 2, 4, 0]


def test_uniform_is_uniform():
    sampler, counts = filled(Uniform(), 12), np.zeros(12)
    for slot in (3, 11):
        sampler.remove(slot)
    generator = random(1)
    for _ in range(2000):
        np.add.at(counts, sampler.draw(5, generator), 1)
    assert counts[3] == counts[11] == 0
    kept = np.delete(counts, [3, 11])
    assert ((kept - 1000) ** 2 / 1000).sum() < 27.9  # chi square, 9 degrees of freedom, p = 0.001


def test_uniform_repeats_within_a_batch_only_if_it_must():
    sampler = filled(Uniform(), 5)
    assert sorted(sampler.draw(5, random())) == [0, 1, 2, 3, 4]
    assert len(sampler.draw(9, random())) == 9 and set(sampler.draw(9, random())) <= set(range(5))


@pytest.mark.parametrize("sampler", [Fresh, Uniform, Mixed, Prioritized])
def test_any_history_of_a_ring_leaves_exactly_what_is_stored(sampler):
    sampler, stored, generator = filled(sampler(), 0), set(), random(2)
    for _ in range(500):
        slot = int(generator.integers(20))
        if slot in stored:
            sampler.remove(slot)
            stored.discard(slot)
        else:
            sampler.insert(slot)
            stored.add(slot)
        if sampler.missing(1):
            assert not stored
    count = len(stored)
    assert sampler.missing(count) == 0
    if isinstance(sampler, Mixed):
        assert set(sampler.draw(count, generator)) <= stored
    elif isinstance(sampler, Prioritized):
        assert set(sampler.draw(20 * count, generator)) == stored
    else:
        assert set(sampler.draw(count, generator)) == stored


@pytest.mark.parametrize(
    ("fresh", "batch", "new"), [(0.5, 10, 5), (0.25, 8, 2), (0.5, 1, 1), (0.1, 4, 1), (0.9, 10, 9)]
)
def test_mixed_takes_its_share_of_fresh_ones(fresh, batch, new):
    sampler = filled(Mixed(fresh), 100, seen=set(range(50)))
    assert sampler.reuse == pytest.approx(1 / fresh) and sampler.pending() == 50
    slots = sampler.draw(batch, random())
    assert list(slots[:new]) == list(range(50, 50 + new)) and len(slots) == batch
    assert sampler.pending() == 50 - new


def test_mixed_waits_for_fresh_ones_only():
    sampler = filled(Mixed(0.5), 10, seen=set(range(10)))
    assert sampler.missing(4) == 2
    sampler.insert(10)
    assert sampler.missing(4) == 1


def test_mixed_draws_the_rest_uniformly():
    counts, generator, sampler = np.zeros(10), random(3), filled(Mixed(0.5), 10, seen=set(range(10)))
    for _ in range(1000):
        sampler._parts[0].insert(0)
        np.add.at(counts, sampler.draw(2, generator)[1:], 1)
    assert ((counts - 100) ** 2 / 100).sum() < 27.9


@pytest.mark.parametrize("fresh", [0, 1, -0.5, 2, float("nan")])
def test_shares_that_make_no_sense_are_refused(fresh):
    with pytest.raises(SettingsError, match="shares between 0 and 1"):
        Mixed(fresh)


# -- prioritized --------------------------------------------------------------------------------------------------------


def prioritized(priorities, **settings):
    """A sampler whose slots were drawn once and got these priorities."""
    sampler = filled(Prioritized(**settings), len(priorities))
    sampler.draw(1, random())
    sampler.set_priorities(torch.arange(len(priorities)), torch.tensor(priorities))
    return sampler


def frequencies(sampler, count=30_000, size=200):
    return np.bincount(sampler.draw(count, random(1)), minlength=size) / count


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_slots_are_drawn_in_proportion_to_their_priority_to_the_alpha(alpha):
    """Batches of 5, so that strata are wide; Schaul et al. 2016, eq. 1."""
    priorities, counts, generator = [0.1, 4.0, 0.0, 1.0, 1.0, 9.0, 0.5], np.zeros(7), random(5)
    sampler = prioritized(priorities, alpha=alpha)
    for _ in range(1000):
        np.add.at(counts, sampler.draw(5, generator), 1)
    powers = np.array([(p + LEAST_PRIORITY) ** alpha for p in priorities])
    expected = 5000 * powers / powers.sum()
    likely = expected > 5
    assert ((counts - expected)[likely] ** 2 / expected[likely]).sum() < 22.5  # chi square, 6 degrees, p = 0.001
    assert counts[~likely].sum() < 20


def test_a_batch_is_spread_over_equal_strata():
    sampler = prioritized([1.0] * 100)
    assert sampler.draw(100, random()).tolist() == list(range(100))


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (1.0, 1.0), (0.9, 0.6), (0.5, 0.0)])
def test_importance_weights_are_those_of_the_paper(alpha, beta):
    """Schaul et al. 2016, section 3.4: (1/N · 1/P(i))^β, over the largest of the batch."""
    priorities = [0.3, 4.0, 0.01, 1.0, 25.0]
    sampler = prioritized(priorities, alpha=alpha, beta=beta)
    total = sum((p + LEAST_PRIORITY) ** alpha for p in priorities)
    for slots in ([0, 1, 2, 3, 4], [4, 1, 1], [3]):
        raw = [(1 / 5 * total / (priorities[slot] + LEAST_PRIORITY) ** alpha) ** beta for slot in slots]
        weights = sampler.weights(np.array(slots))
        assert weights.dtype == torch.float32
        assert weights.tolist() == pytest.approx([weight / max(raw) for weight in raw], rel=1e-6)


def test_full_correction_makes_the_mean_that_of_a_uniform_draw():
    """With β = 1 the weighted mean of anything, over what is drawn, is its plain mean: what the weights are for."""
    priorities, values = [0.2, 5.0, 1.0, 0.5], np.array([3.0, -1.0, 4.0, 10.0])
    sampler = prioritized(priorities, alpha=1.0, beta=1.0)
    slots = sampler.draw(100_000, random(3))
    weights = sampler.weights(slots).numpy()
    assert (weights * values[slots]).sum() / weights.sum() == pytest.approx(values.mean(), abs=0.05)
    assert values[slots].mean() < 1


def test_new_sessions_have_the_largest_priority_that_there_is():
    sampler = prioritized([0.5, 7.0, 2.0], alpha=1.0)
    sampler.insert(3)
    sampler.remove(0)
    sampler.insert(0)
    assert frequencies(sampler)[:4] == pytest.approx(np.array([7, 7, 2, 7]) / 23, abs=1e-3)  # of 7, 2


def test_one_absurd_priority_is_forgotten_with_its_session():
    sampler = prioritized([1.0, 1.0, 1.0], alpha=1.0)
    sampler.set_priorities(torch.tensor([1]), torch.tensor([1e12]))
    sampler.draw(8, random(0))
    sampler.remove(1)
    sampler.insert(1)
    sampler.insert(3)
    assert frequencies(sampler)[:4] == pytest.approx(np.full(4, 0.25), abs=1e-3)


def test_what_was_removed_is_not_drawn_whatever_priority_comes_late():
    sampler = prioritized([1.0, 1.0, 1.0])
    sampler.remove(1)
    sampler.set_priorities(torch.tensor([1]), torch.tensor([100.0]))  # before the next draw
    assert set(sampler.draw(30, random())) == {0, 2}
    sampler.set_priorities(torch.tensor([1]), torch.tensor([100.0]))  # and after it
    assert set(sampler.draw(30, random())) == {0, 2}
    sampler.remove(1)
    sampler.remove(99)
    assert set(sampler.draw(30, random())) == {0, 2}


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -float("inf"), -3.0])
def test_a_priority_that_is_no_number_changes_nothing(nonsense):
    sampler = prioritized([1.0, 3.0], alpha=0.5)
    before = frequencies(sampler)
    sampler.set_priorities(torch.tensor([0, 1]), torch.tensor([nonsense, 3.0]))
    sampler.insert(2)
    after = frequencies(sampler)
    assert after[:2] / after[:2].sum() == pytest.approx(before[:2], abs=1e-3)
    assert after[2] == pytest.approx(after[1], abs=1e-3)


def test_a_sampler_begins_anew_with_each_replay():
    sampler = prioritized([1.0, 9.0])
    assert set(filled(sampler, 1).draw(10, random())) == {0}


@pytest.mark.parametrize(("alpha", "beta"), [(-1, 0.4), (0.6, -0.1), (0.6, 1.1), (float("nan"), 0.4)])
def test_exponents_that_make_no_sense_are_refused(alpha, beta):
    with pytest.raises(SettingsError, match="alpha is 0 or more, beta between 0 and 1"):
        Prioritized(alpha, beta)


def test_samplers_by_name():
    names = ("fresh", "uniform", "mixed", "prioritized")
    assert [type(sampler_of(name)) for name in names] == [Fresh, Uniform, Mixed, Prioritized]
    mine = Fresh()
    assert sampler_of(mine) is mine
    with pytest.raises(SettingsError, match=r"'newest'; there are fresh, mixed, prioritized, uniform\."):
        sampler_of("newest")


def test_a_sampler_of_ones_own_must_say_what_it_does():
    sampler = Sampler()
    for call in (
        lambda: sampler.insert(0),
        lambda: sampler.remove(0),
        lambda: sampler.missing(1),
        lambda: sampler.draw(1, random()),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert sampler.pending() == 0 and sampler.reuse is None
