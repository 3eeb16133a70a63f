"""Player: steps a batch of environments and records rollouts, from which sessions are cut."""

from collections.abc import Sequence

import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.core import nest
from tinyverse.core.timing import Rate, Stages
from tinyverse.envs.adapters import close
from tinyverse.envs.pool import Pool
from tinyverse.player.rollout import Rollout, empty

SEEDS_APART = 1 << 20  # between the two pools of a player


class Player:
    """Steps every environment `unroll_length` times at a call; `agent` may be swapped between two calls.

    Given two pools it takes them in turn: one is stepped (in the emulator's threads, if it has them) while the agent
    acts in the other. Synonym: double-buffered sampling. Their environments count as one batch, the first pool's first.
    """

    def __init__(self, agent: Agent, pools: Pool | Sequence[Pool], unroll_length: int, *, seed: int = 0) -> None:
        self.agent, self.unroll_length = agent, unroll_length
        self.pools = [pools] if isinstance(pools, Pool) else list(pools)
        self.version, self.update = -1, 0
        self.rate, self.stages = Rate(), Stages()
        agent.seed(seed)
        self._slots, self.num_envs = [], 0
        for index, pool in enumerate(self.pools):
            columns = slice(self.num_envs, self.num_envs + pool.num_envs)
            self._slots.append(EnvSlot(agent, pool, columns, seed + index * SEEDS_APART))
            self.num_envs = columns.stop

    def play(self) -> Rollout:
        """Plays the next T steps of every environment."""
        T, slots = self.unroll_length, self._slots
        rollout = self._blank()
        for slot in slots:
            slot.act(self.agent, rollout, 0, self.stages)
        for t in range(T):
            for slot in slots:
                with self.stages("environment"):
                    slot.receive(rollout, t)
                if t < T - 1:
                    slot.act(self.agent, rollout, t + 1, self.stages)
        for slot in slots:
            nest.assign(rollout.observations, (T, slot.columns), slot.observations)
        self.rate.add(int(rollout.valid.sum()))
        return rollout

    def close(self) -> None:
        """Closes the environments."""
        for pool in self.pools:
            close(pool)

    def _blank(self) -> Rollout:
        T, num_envs, slots = self.unroll_length, self.num_envs, self._slots
        flags = {name: empty(np.zeros(1, bool), T, num_envs) for name in ("terminated", "truncated", "valid")}
        states = [slot.state_before_row_0(self.agent) for slot in slots]
        return Rollout(
            observations=empty(slots[0].observations, T + 1, num_envs), actions=None, extras={}, **flags,
            rewards=empty(np.zeros(1, np.float32), T, num_envs), initial_state=nest.map(lambda *parts: np.concatenate(parts), *states),
            episodes=[[] for _ in range(num_envs)], version=self.version, update=self.update,
        )  # fmt: skip


class EnvSlot:
    """Some columns of a rollout: one pool's environments, and their state between two steps."""

    def __init__(self, agent: Agent, pool: Pool, columns: slice, seed: int) -> None:
        num_envs = pool.num_envs
        self.pool, self.columns = pool, columns
        self.observations = pool.reset(seed)
        self._ended = np.zeros(num_envs, bool)  # in the previous row: this row is the environment's reset
        self._is_first = np.ones(num_envs, bool)  # the observations at hand open an episode
        self._state = agent.initial_state(num_envs)
        self._blank_state = nest.map(np.array, agent.state_arrays(self._state))
        self._over = np.zeros(num_envs, bool)  # the same, of whole episodes: an episode may be a part of one
        self._return, self._length = np.zeros(num_envs), np.zeros(num_envs, np.int64)

    def act(self, agent: Agent, rollout: Rollout, t: int, stages: Stages) -> None:
        """Chooses the actions of row t and sends them to the environments."""
        here = t, self.columns
        nest.assign(rollout.observations, here, self.observations)
        with stages("act"):
            actions, self._state, extras = agent.act(self.observations, self._state, self._is_first)
        if rollout.actions is None:
            T, num_envs = rollout.rewards.shape
            rollout.actions, rollout.extras = empty(actions, T, num_envs), empty(extras, T, num_envs)
        nest.assign(rollout.actions, here, actions)
        nest.assign(rollout.extras, here, extras)
        self.pool.send(actions)

    def receive(self, rollout: Rollout, t: int) -> None:
        """Receives what the actions of row t led to."""
        step, valid, here = self.pool.receive(), ~self._ended, (t, self.columns)
        rollout.rewards[here], rollout.valid[here] = step.rewards * valid, valid
        rollout.terminated[here], rollout.truncated[here] = step.terminated & valid, step.truncated & valid
        self.observations, self._is_first = step.observations, self._ended
        self._ended = step.terminated | step.truncated
        goes_on, self._over = ~self._over, self._ended if step.game_over is None else step.game_over
        self._return, self._length = (self._return + step.rewards) * goes_on, (self._length + 1) * goes_on
        for index in np.flatnonzero(self._over & goes_on):
            ended = (float(self._return[index]), int(self._length[index]))
            rollout.episodes[self.columns.start + index].append(ended)

    def state_before_row_0(self, agent: Agent) -> nest.Tree:
        """Returns the recurrent state as arrays, with the reset before row 0 applied, which sessions cannot tell."""

        def reset(blank: np.ndarray, now: np.ndarray) -> np.ndarray:
            return np.where(self._is_first.reshape(-1, *[1] * (now.ndim - 1)), blank, now)

        return nest.map(reset, self._blank_state, agent.state_arrays(self._state))
