"""Parallel: several agents in one world (PettingZoo's parallel environments), each of them a game of the batch.

All share one set of weights. An agent that is out while others play on has rows that do not count until the next
episode, which begins for all of them at once. PettingZoo itself is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyverse import nest
from tinyverse.envs.arrays import Door, blank, fit, number_of, spec_of
from tinyverse.envs.dialects import space_of
from tinyverse.envs.pool import Pool, Step, as_int
from tinyverse.errors import ExperimentError, SpecError


def is_parallel(env: Any) -> bool:
    """Whether it speaks as PettingZoo's parallel environments do."""
    return hasattr(env, "possible_agents") and not hasattr(env, "agent_iter")


class ParallelPool(Pool):
    """Worlds of A agents, stepped one by one in this process: world w has the games w·A … w·A + A − 1.

    Of `num_games` there are as many as fill whole worlds, and one world at least.
    """

    def __init__(self, make_env: Callable[[], Any], num_games: int, *, realtime: bool = False) -> None:
        first = make_env()
        self._agents: list[Any] = list(first.possible_agents)
        self._worlds = [first, *(make_env() for _ in range(math.ceil(num_games / len(self._agents)) - 1))]
        self.num_games, self.realtime = len(self._worlds) * len(self._agents), realtime
        self.observation_space = _shared(first.observation_space, self._agents, "observation")
        self.action_space = _shared(first.action_space, self._agents, "action")
        self._spec = spec_of(self.observation_space, ())
        self._door = Door(self.action_space, self.num_games)
        self._observations = blank(self._spec, self.num_games)
        self._over = np.zeros(self.num_games, bool)

    def reset(self, seed: int | None = None) -> nest.Tree:
        for world, sequence in enumerate(np.random.SeedSequence(seed).spawn(len(self._worlds))):
            self._begin(world, as_int(sequence))
        return self._observations

    def step(self, actions: nest.Tree) -> Step:
        columns = self._door.columns(actions)
        self._rewards = np.zeros(self.num_games, np.float32)
        self._terminated, self._truncated = np.zeros(self.num_games, bool), self._over.copy()
        for world in range(len(self._worlds)):
            games = slice(world * len(self._agents), (world + 1) * len(self._agents))
            if self._over[games].all():
                self._begin(world, None)
                self._truncated[games] = False
            else:
                self._step(world, columns)
        self._over |= self._terminated | self._truncated
        return Step(self._observations, self._rewards, self._terminated, self._truncated)

    def close(self) -> None:
        for world in self._worlds:
            world.close()

    def _begin(self, world: int, seed: int | None) -> None:
        env = self._worlds[world]
        observations = (env.reset() if seed is None else env.reset(seed=seed))[0]
        missing = [agent for agent in self._agents if agent not in observations]
        if missing:
            raise SpecError(f"reset gave no observation of {missing}, wanted one of each of possible_agents.")
        for place, agent in enumerate(self._agents):
            game = world * len(self._agents) + place
            self._store(game, observations[agent])
            self._over[game] = False

    def _step(self, world: int, columns: nest.Tree) -> None:
        games = {agent: world * len(self._agents) + place for place, agent in enumerate(self._agents)}
        playing = {agent: game for agent, game in games.items() if not self._over[game]}
        actions = {agent: nest.map(lambda column: column[game], columns) for agent, game in playing.items()}  # noqa: B023
        observations, rewards, terminated, truncated, _ = self._worlds[world].step(actions)
        for agent, game in playing.items():
            if agent in observations:
                self._store(game, observations[agent])
            self._rewards[game] = number_of(rewards.get(agent, 0.0))
            self._terminated[game] = terminated.get(agent, False)
            # gone without a word: an episode that was cut
            self._truncated[game] = not self._terminated[game] and truncated.get(agent, agent not in observations)

    def _store(self, game: int, observation: nest.Tree) -> None:
        fitting = fit(self._spec, observation)
        nest.map(lambda batch, leaf: batch.__setitem__(game, leaf), self._observations, fitting)


def _shared(space_for: Callable[[Any], Any], agents: list[Any], what: str) -> Any:
    """The one space of all agents."""
    spaces = [space_of(space_for(agent)) for agent in agents]
    for agent, space in zip(agents, spaces, strict=True):
        if space != spaces[0]:
            raise ExperimentError(
                f"the {what} space of agent {agents[0]} is {spaces[0]}, that of {agent} is {space}; agents that share "
                "their weights need one space: pad them in make_env (supersuit does it)."
            )
    return spaces[0]
