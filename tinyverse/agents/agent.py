"""Agent: what a player needs of a policy. NumPy in, NumPy out, so any framework can sit behind it.

    memory = agent.initial_memory(n)
    first = np.ones(n, bool)
    loop:
        actions, memory, extras = agent.act(observations, memory, first)
        observations, ... = pool.step(actions)
        first = the games whose episode has just been reset

`memory` (a recurrent state, a window of frames …) is opaque to whoever plays: a torch agent keeps tensors in it.
It becomes arrays once per session, by `memory_arrays`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyverse.core import nest
from tinyverse.core.weights import Weights


class Agent:
    """A policy over a batch of `n` games. Synonyms: actor, policy.

    A subclass overrides `act`; one with memory also `initial_memory` and `memory_arrays`; one that learns also
    `get_weights` and `set_weights`.
    """

    def seed(self, seed: int) -> None:
        """Makes the sampling of actions reproducible from here on."""

    def initial_memory(self, n: int) -> Any:
        """The memory of `n` games at the beginning of an episode."""
        return ()

    def act(
        self, observations: nest.Tree, memory: Any, first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, Any, dict[str, np.ndarray]]:
        """Chooses actions.

        Args:
            observations: [n, …] per leaf.
            memory: what the previous call, or `initial_memory(n)`, returned.
            first: [n] bool; where True, memory is reset before this observation.
            greedy: the most likely action instead of a sample.
        Returns:
            actions [n, …] per leaf as the environment takes them, the new memory, and extras: float32 arrays
            [n, …] that learning will want (`behaviour_logits`, `behaviour_log_prob` …), the same names every time.
        """
        raise NotImplementedError(f"{type(self).__name__} must define act()")

    def memory_arrays(self, memory: Any) -> nest.Tree:
        """Memory as arrays [n, …] per leaf, to be stored with a session."""
        return memory

    def get_weights(self) -> Weights:
        """A copy of all that `set_weights` needs in another process, by name; schedules (ε, temperature) travel here too.

        A copy, because it is published while learning goes on.
        """
        return {}

    def set_weights(self, weights: Weights) -> None:
        """Takes weights that `get_weights` gave. Arrays may be read-only and must not be kept without a copy."""


class RandomAgent(Agent):
    """Samples every action uniformly from an action space: the baseline any agent must beat."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.action_space = action_space

    def seed(self, seed: int) -> None:
        self.action_space.seed(seed)

    def act(
        self, observations: nest.Tree, memory: Any, first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, Any, dict[str, np.ndarray]]:
        samples = [self.action_space.sample() for _ in range(len(first))]
        return nest.map(lambda *parts: np.stack(parts), *samples), memory, {}
