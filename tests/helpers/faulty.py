"""Faulty environments of the counting kind: at chosen steps they raise, hang, lie or grow; and workers' way to make them."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from gymnasium import spaces

from tests.helpers.counting import CountingEnv
from tinyverse.envs import Pool, SerialPool


class FaultyEnv(CountingEnv):
    """A counting environment that fails `how` when it is stepped for the `when`-th time; one built anew counts anew.

    Its observations are floats, so that they can be NaN.
    """

    def __init__(self, how: str = "", when: int = 10) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 2**20, (3,), np.float32)
        self.how, self.when, self.count = how, when, 0
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.how == "reset raises" and self.count >= self.when:
            raise KeyError("mine")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.count += 1
        result = list(super().step(action))
        if self.count == self.when:
            if self.how == "raises":
                raise KeyError("mine")
            if self.how == "hangs":
                time.sleep(1000)
            if self.how == "dies":
                os._exit(3)
            if self.how == "grows":
                self.kept = np.ones(400 << 20, np.uint8)
            if self.how == "forgets":
                return result[:2]
            spoilt = {
                "nan": result[0] * np.nan,
                "infinite": result[0] + np.inf,
                "shape": result[0][:2],
                "dtype": result[0].astype(complex),
            }
            result[0] = spoilt.get(self.how, result[0])
            result[1] = {"nan reward": np.nan, "huge reward": 1e39, "rewards": np.ones(2)}.get(self.how, result[1])
        return tuple(result)

    def close(self) -> None:
        self.closed = True

    def _observation(self) -> Any:
        return super()._observation().astype(np.float32)


def one_faulty(how: str, when: int, num_envs: int) -> Pool:
    """Environments of which the first, and none built later, is faulty."""
    faults = [how]
    return SerialPool(lambda: FaultyEnv(faults.pop() if faults else "", when), num_envs, restart=True)


def one_faulty_process(mark: str, how: str, when: int, num_envs: int) -> Pool:
    """The same in the first process that finds no file `mark`; its successors are sound."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        how = ""
    return one_faulty(how, when, num_envs)


def all_faulty(how: str, when: int, num_envs: int) -> Pool:
    return SerialPool(lambda: FaultyEnv(how, when), num_envs, restart=True)


def counting(num_envs: int) -> Pool:
    return SerialPool(CountingEnv, num_envs)


def nested_counting(num_envs: int) -> Pool:
    return SerialPool(lambda: CountingEnv(nested=True), num_envs)
