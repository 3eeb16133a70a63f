"""SumTree: against a plain array, through long random histories."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyverse.replay.sum_tree import FAN, SumTree

torch.set_num_threads(1)


def filled(priorities):
    tree = SumTree(len(priorities))
    tree.set(torch.arange(len(priorities)), torch.tensor(priorities, dtype=torch.float64))
    return tree


def naive_draw(priorities, place):
    """The slot on whose piece of the line the place lies."""
    rest = place * sum(priorities)
    for slot, priority in enumerate(priorities):
        if rest < priority:
            return slot
        rest -= priority
    raise AssertionError("the place lies behind the line")


def holds(tree, array):
    """The invariants: priorities are those of the array, the total is their sum, and only what has one is drawn."""
    assert tree.get(torch.arange(len(array))).tolist() == array.tolist()
    assert tree.total.item() == pytest.approx(array.sum(), rel=1e-12, abs=0)
    if array.sum() > 0:
        assert (array[tree.draw(torch.linspace(0, 1, 64, dtype=torch.float64)).numpy()] > 0).all()


def change(tree, array, slots, values):
    tree.set(torch.from_numpy(slots), torch.from_numpy(values))
    for slot in set(slots):
        array[slot] = values[slots == slot].max()


@pytest.mark.parametrize("size", [1, 2, FAN - 1, FAN, FAN + 1, 300, FAN**2, FAN**2 + 1])
def test_a_hundred_thousand_operations_against_an_array(size):
    random, tree, array = np.random.default_rng(size), SumTree(size), np.zeros(size)
    for step in range(200):
        slots = random.integers(0, size, 64)
        values = random.exponential(size=64) * 10.0 ** random.integers(-6, 7, 64) * (random.random(64) < 0.7)
        if step % 50 == 49:
            slots, values = np.arange(size), np.zeros(size)  # everything goes
        change(tree, array, slots, values)
        holds(tree, array)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), size=st.integers(1, FAN**2 + 1))
def test_no_history_breaks_it(data, size):
    """Whatever is set in whatever order: also the smallest and the largest priorities beside each other."""
    priorities = st.one_of(st.just(0.0), st.floats(1e-300, 1e100))
    tree, array = SumTree(size), np.zeros(size)
    for part in data.draw(st.lists(st.lists(st.tuples(st.integers(0, size - 1), priorities), min_size=1))):
        slots, values = map(np.array, zip(*part, strict=True))
        change(tree, array, slots, values)
        holds(tree, array)


@pytest.mark.parametrize("size", [1, 5, FAN + 3, 700])
def test_draws_are_those_of_a_walk_along_the_line(size):
    random = np.random.default_rng(size)
    priorities = (random.integers(0, 4, size) + (size == 1)).tolist()  # whole numbers: sums are exact
    places = random.random(300)
    drawn = filled(priorities).draw(torch.from_numpy(places))
    assert drawn.tolist() == [naive_draw(priorities, place) for place in places]


@pytest.mark.parametrize("size", [3, 5000])
def test_frequencies_are_the_priorities(size):
    random = np.random.default_rng(0)
    priorities = np.zeros(size)
    chosen = random.choice(size, min(size, 40), replace=False)
    priorities[chosen] = random.uniform(0.2, 5, len(chosen))
    count = 40_000
    drawn = np.bincount(filled(priorities).draw(torch.from_numpy(random.random(count))), minlength=size)
    expected = count * priorities / priorities.sum()
    assert drawn[priorities == 0].sum() == 0
    statistic = ((drawn - expected)[chosen] ** 2 / expected[chosen]).sum()
    assert statistic < {3: 13.8, 40: 72.1}[len(chosen)]  # chi square, 2 and 39 degrees of freedom, p = 0.001


@pytest.mark.parametrize("tiny", [1e-300, 1e-17, 0.0])
def test_no_place_leads_to_a_slot_without_priority(tiny):
    """Not even the last place before 1, where sums of numbers of any size have been rounded."""
    priorities = [0.0, tiny, 0.1, 0.0, 1e9, 0.3, 0.0] + [0.0] * 200
    drawn = filled(priorities).draw(torch.tensor([0.0, 1e-300, 0.5, 1 - 2.0**-53, 1.0], dtype=torch.float64))
    assert all(priorities[slot] > 0 for slot in drawn.tolist())


def test_a_slot_that_comes_twice_gets_its_larger_priority():
    tree = SumTree(100)
    tree.set(torch.tensor([7, 7, 70, 7]), torch.tensor([1.0, 3.0, 5.0, 2.0]).double())
    assert tree.get(torch.tensor([7, 70])).tolist() == [3, 5] and tree.total.item() == 8
    tree.set(torch.tensor([7, 7]), torch.tensor([0.5, 0.0]).double())
    assert tree.total.item() == 5.5


def test_changing_nothing_changes_nothing():
    tree = filled([1.0, 2.0])
    tree.set(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
    assert tree.total.item() == 3
