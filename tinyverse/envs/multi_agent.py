"""MultiAgentPool: PettingZoo's parallel environments, in which every agent is one environment of the batch.

All agents share one set of weights. An agent that is out has invalid rows until the world's next episode, which begins
for all agents at once. PettingZoo itself is not imported.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SpecError
from tinyverse.envs.adapters import gymnasium_space
from tinyverse.envs.pool import Pool, Step, as_int
from tinyverse.envs.restarts import MAX_FAILURES, RestartPolicy
from tinyverse.envs.spaces import ActionAdapter, blank, fit, floats_of, has_nan, not_a_number, number_of, spec_of


def is_parallel(env: Any) -> bool:
    """Tells whether it has the interface of PettingZoo's parallel environments."""
    return hasattr(env, "possible_agents") and not hasattr(env, "agent_iter")


class MultiAgentPool(Pool):
    """Worlds of A agents, stepped one by one in this process. World w has the indices w·A … w·A + A − 1 of the batch.

    The number of worlds is `num_envs` / A, rounded up. With `restart`, a world that raises or breaks its spaces is
    replaced (see `restarts`), which truncates the episodes of all its agents; otherwise the error is raised.
    """

    def __init__(
        self, make_env: Callable[[], Any], num_envs: int, *, realtime: bool = False, restart: bool = False
    ) -> None:
        first, self._make = make_env(), make_env
        self._agents: list[Any] = list(first.possible_agents)
        rest = range(math.ceil(num_envs / len(self._agents)) - 1)
        self._worlds: list[Any] = [first, *(make_env() for _ in rest)]  # None: waits for its restart
        self.num_envs, self.realtime = len(self._worlds) * len(self._agents), realtime
        self.observation_space = _shared(first.observation_space, self._agents, "observation")
        self.action_space = _shared(first.action_space, self._agents, "action")
        self._spec = spec_of(self.observation_space, ())
        self._action_adapter = ActionAdapter(self.action_space, self.num_envs)
        self._observations = blank(self._spec, self.num_envs)
        self._over = np.zeros(self.num_envs, bool)
        self._restarts = RestartPolicy(len(self._worlds), "world") if restart else None
        self._seeds: list[np.random.SeedSequence] = []
        self._step_count = 0

    def reset(self, seed: int | None = None) -> nest.Tree:
        self._seeds = np.random.SeedSequence(seed).spawn(len(self._worlds))
        self._clear()
        for world in range(len(self._worlds)):
            self._first_reset(world)
        return self._observations

    def step(self, actions: nest.Tree) -> Step:
        columns = self._action_adapter.columns(actions)
        if self._restarts is not None and all(world is None for world in self._worlds):
            self._restarts.wait(list(range(len(self._worlds))))
        self._step_count += 1
        self._clear()
        for world in range(len(self._worlds)):
            try:
                self._next(world, columns)
            except Exception as error:
                self._fail(world, error)
        self._over |= self._terminated | self._truncated
        return Step(self._observations, self._rewards, self._terminated, self._truncated)

    def close(self) -> None:
        for world in self._worlds:
            if world is not None:
                world.close()

    def _columns(self, world: int) -> range:
        return range(world * len(self._agents), (world + 1) * len(self._agents))

    def _clear(self) -> None:
        """Sets rewards and flags to those of a step in which nothing happens: agents that are out stay out."""
        self._rewards = np.zeros(self.num_envs, np.float32)
        self._terminated, self._truncated = np.zeros(self.num_envs, bool), self._over.copy()

    def _next(self, world: int, columns: nest.Tree) -> None:
        """Makes the next rows of a world's agents."""
        if not self._over[self._columns(world)].all():
            self._step(world, columns)
        elif self._worlds[world] is not None:
            self._begin(world, None)
            if self._restarts is not None:
                self._restarts.recovered(world)
        elif self._restarts is not None and not self._restarts.delay(world):
            self._worlds[world] = self._make()
            self._restarts.restarted(world, step=self._step_count)
            self._begin(world, as_int(self._seeds[world].spawn(1)[0]))

    def _first_reset(self, world: int) -> None:
        """Resets a world that has no earlier rows to repeat, so it waits until a restart succeeds."""
        while True:
            try:
                if self._worlds[world] is None:
                    self._worlds[world] = self._make()
                return self._begin(world, as_int(self._seeds[world]))
            except Exception as error:
                self._fail(world, error)
                if self._restarts is None or self._restarts.failures(world) >= MAX_FAILURES:
                    raise
                self._restarts.wait([world])

    def _begin(self, world: int, seed: int | None) -> None:
        # writes nothing before all is checked, as `_step` does, so that a world that fails repeats its last rows
        env = self._worlds[world]
        observations = (env.reset() if seed is None else env.reset(seed=seed))[0]
        missing = [agent for agent in self._agents if agent not in observations]
        if missing:
            raise SpecError(f"reset gave no observation of {missing}, wanted one of each of possible_agents.")
        self._store(
            {index: observations[agent] for agent, index in zip(self._agents, self._columns(world), strict=True)}
        )
        columns = self._columns(world)
        self._over[columns] = self._truncated[columns] = False

    def _step(self, world: int, columns: nest.Tree) -> None:
        playing = {
            agent: index
            for agent, index in zip(self._agents, self._columns(world), strict=True)
            if not self._over[index]
        }
        actions = {agent: nest.map(lambda column: column[index], columns) for agent, index in playing.items()}  # noqa: B023
        observations, rewards, terminated, truncated, _ = self._worlds[world].step(actions)
        paid = {index: number_of(rewards.get(agent, 0.0)) for agent, index in playing.items()}
        if not math.isfinite(sum(paid.values())):
            raise not_a_number("reward")
        self._store({index: observations[agent] for agent, index in playing.items() if agent in observations})
        for agent, index in playing.items():
            self._rewards[index] = paid[index]
            self._terminated[index] = terminated.get(agent, False)
            # an agent that vanishes without flags is truncated
            self._truncated[index] = not self._terminated[index] and truncated.get(agent, agent not in observations)

    def _store(self, observations: dict[int, nest.Tree]) -> None:
        fitting = {index: fit(self._spec, observation) for index, observation in observations.items()}
        if any(has_nan(floats_of(observation)) for observation in fitting.values()):
            raise not_a_number("observation")
        for index, observation in fitting.items():
            nest.map(lambda batch, leaf: batch.__setitem__(index, leaf), self._observations, observation)  # noqa: B023

    def _fail(self, world: int, error: Exception) -> None:
        """Closes a failed world. Its rows repeat the rows before and truncate the episodes."""
        if self._restarts is None:
            raise error
        env, self._worlds[world] = self._worlds[world], None
        with contextlib.suppress(Exception):  # an error while closing a broken world is of no use
            env.close()
        columns = self._columns(world)
        self._rewards[columns], self._terminated[columns], self._truncated[columns] = 0.0, False, True
        self._restarts.failed(world, error, step=self._step_count)
        self.faults, self.fault = self._restarts.faults, self._restarts.fault


def _shared(space_for: Callable[[Any], Any], agents: list[Any], what: str) -> Any:
    """Returns the space that all agents have.

    Raises:
        ExperimentError: two agents have different spaces.
    """
    spaces = [gymnasium_space(space_for(agent)) for agent in agents]
    for agent, space in zip(agents, spaces, strict=True):
        if space != spaces[0]:
            raise ExperimentError(
                f"the {what} space of agent {agents[0]} is {spaces[0]}, that of {agent} is {space}; agents that share "
                "their weights need one space: pad them in make_env (supersuit does it)."
            )
    return spaces[0]
