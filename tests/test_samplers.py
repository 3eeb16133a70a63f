"""Samplers: which slots are drawn, in what order and how often."""

import numpy as np
import pytest

from tinyverse.errors import SettingsError
from tinyverse.samplers import Fresh, Mixed, Sampler, Uniform, sampler_of


def filled(sampler, count, seen=()):
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


@pytest.mark.parametrize("sampler", [Fresh, Uniform, Mixed])
def test_any_history_of_a_ring_leaves_exactly_what_is_stored(sampler):
    sampler, stored, generator = sampler(), set(), random(2)
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
    with pytest.raises(SettingsError, match="share between 0 and 1"):
        Mixed(fresh)


def test_samplers_by_name():
    assert [type(sampler_of(name)) for name in ("fresh", "uniform", "mixed")] == [Fresh, Uniform, Mixed]
    mine = Fresh()
    assert sampler_of(mine) is mine
    with pytest.raises(SettingsError, match=r"'newest'; there are fresh, mixed, uniform\."):
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
