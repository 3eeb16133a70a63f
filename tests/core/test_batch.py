"""Batch: what is derived of the flags, row by row as Session draws them."""

import numpy as np
import torch

from tinyverse.core.batch import Batch

torch.set_num_threads(1)

#                 t  0  1  2  3  4  5     o3 ends its episode, row 3 is the reset
TERMINATED = [[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
TRUNCATED = [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]]
ALIVE = [[1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1]]


def batch(burn_in=0):
    flags = {"terminated": TERMINATED, "truncated": TRUNCATED, "valid": ALIVE}
    return Batch(
        observations={"a": torch.zeros(7, 2, 3), "b": (torch.ones(7, 2),)}, actions=torch.zeros(6, 2), rewards=torch.zeros(6, 2),
        initial_state=(), extras={"x": torch.zeros(6, 2)}, weights=torch.ones(2), lag=torch.zeros(2), slots=torch.arange(2),
        burn_in=burn_in, **{name: torch.tensor(rows).T.bool() for name, rows in flags.items()},
    )  # fmt: skip


def test_first_is_the_row_after_the_reset():
    assert batch().is_first.T.int().tolist() == [[0, 0, 0, 0, 1, 0, 0]] * 2


def test_mask_leaves_out_resets_and_burn_in():
    assert batch().mask.T.tolist() == ALIVE
    assert batch(burn_in=2).mask.T.tolist() == [[0, 0, 1, 0, 1, 1]] * 2


def test_returns_are_cut_at_any_end_and_discounts_only_at_a_death():
    assert batch().continues.T.tolist() == [[1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 0]]
    torch.testing.assert_close(batch().discounts(0.9).T, torch.tensor([[0.9, 0.9, 0, 0.9, 0.9, 0.9], [0.9] * 6]))


def test_numpy_is_the_same_in_arrays():
    arrays = batch(burn_in=1).numpy()
    assert isinstance(arrays.observations["b"][0], np.ndarray) and arrays.burn_in == 1 and arrays.initial_state == ()
    np.testing.assert_array_equal(arrays.mask, batch(burn_in=1).mask.numpy())
    np.testing.assert_array_equal(arrays.is_first, batch().is_first.numpy())
    np.testing.assert_array_equal(arrays.continues, batch().continues.numpy())
