"""RestartingPool: replaces a whole pool that fails, such as a native vector environment."""

import contextlib
from collections.abc import Callable

import numpy as np

from tinyverse.core import nest
from tinyverse.envs.adapters import close
from tinyverse.envs.pool import Pool, SplitPool, Step, as_int
from tinyverse.envs.restarts import RestartPolicy


class RestartingPool(SplitPool):
    """A pool that is replaced by a new one when it raises. The episodes of all its environments are then truncated.

    Args:
        pool: the first pool.
        make: makes the next one.
    """

    def __init__(self, pool: Pool, make: Callable[[], Pool]) -> None:
        self._pool: Pool | None = pool  # None: waits for its restart
        self._make = make
        self.num_envs, self.realtime = pool.num_envs, pool.realtime
        self.observation_space, self.action_space = pool.observation_space, pool.action_space
        self._restarts = RestartPolicy(1, "pool")
        self._seeds = np.random.SeedSequence()
        self._failure: Exception | None = None  # raised by `send`, handled by `receive`

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._seeds, self._failure = np.random.SeedSequence(seed), None
        while True:
            try:
                if self._pool is None:
                    self._pool = self._make()
                self._last = self._pool.reset(seed)
                return self._last
            except Exception as error:
                self._fail(error)
                self._restarts.wait([0])

    def send(self, actions: nest.Tree) -> None:
        if self._pool is not None:
            try:
                self._pool.send(actions)
            except Exception as error:
                self._failure = error

    def receive(self) -> Step:
        self._restarts.steps += 1
        try:
            if self._failure is not None:
                raise self._failure
            step = self._restart() if self._pool is None else self._pool.receive()
        except Exception as error:
            self._fail(error)
            step = self._idle(self._last, truncated=True)
        self._last = step.observations
        return step

    def close(self) -> None:
        if self._pool is not None:
            close(self._pool)

    def _restart(self) -> Step:
        self._restarts.wait([0])
        self._pool = self._make()
        self._restarts.restarted(0)
        return self._idle(self._pool.reset(as_int(self._seeds.spawn(1)[0])), truncated=False)

    def _idle(self, observations: nest.Tree, truncated: bool) -> Step:
        rewards, no = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        return Step(observations, rewards, no, np.full(self.num_envs, truncated))

    def _fail(self, error: Exception) -> None:
        pool, self._pool, self._failure = self._pool, None, None
        with contextlib.suppress(Exception):  # an error while closing a broken pool is of no use
            if pool is not None:
                pool.close()
        self._restarts.failed(0, error)
        self.faults, self.fault = self._restarts.faults, self._restarts.fault
