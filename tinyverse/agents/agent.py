"""Agent: the interface of a policy for players. It takes and returns NumPy arrays, so any framework can implement it.

    state = agent.initial_state(n)
    is_first = np.ones(n, bool)
    loop:
        actions, state, extras = agent.act(observations, state, is_first)
        observations, ... = pool.step(actions)
        is_first = the environments that were just reset

`state` is the recurrent state: an LSTM's state, a window of frames … Players do not look into it, so an agent may keep
tensors there. `state_arrays` turns it into arrays once per session.
"""

from typing import Any

import numpy as np

from tinyverse.core import nest
from tinyverse.core.weights import Weights


class Agent:
    """A policy over a batch of `n` environments. Synonyms: actor, policy.

    A subclass overrides `act`. An agent with a recurrent state also overrides `initial_state` and `state_arrays`, one
    that learns also `get_weights` and `set_weights`.
    """

    only_explores = False  # its randomness serves exploration alone (ε of Q-learning), so it is evaluated without

    def seed(self, seed: int) -> None:
        """Makes the sampling of actions reproducible from here on."""

    def initial_state(self, n: int) -> Any:
        """Returns the recurrent state of `n` environments at the beginning of an episode."""
        return ()

    def act(
        self, observations: nest.Tree, state: Any, is_first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, Any, dict[str, np.ndarray]]:
        """Chooses actions.

        Args:
            observations: [n, …] per leaf.
            state: the recurrent state that the previous call, or `initial_state(n)`, returned.
            is_first: [n] bool; where True, `act` resets the recurrent state before it uses this observation.
            greedy: take the most likely action instead of a sample.
        Returns:
            Actions [n, …] per leaf as the environment takes them, the new recurrent state, and extras for the learner:
            float32 arrays [n, …] with the same names in every call (`behaviour_logits`, `behaviour_log_prob` …).
        """
        raise NotImplementedError(f"{type(self).__name__} must define act()")

    def state_arrays(self, state: Any) -> nest.Tree:
        """Returns the recurrent state as arrays [n, …] per leaf, which are stored with a session."""
        return state

    def get_weights(self) -> Weights:
        """Returns a copy of everything that `set_weights` needs in another process, by name.

        Schedules (ε, temperature) belong here too. It must be a copy, because it is published while learning goes on.
        """
        return {}

    def set_weights(self, weights: Weights) -> None:
        """Takes weights of `get_weights`. Arrays may be read-only and must not be kept without a copy."""


class RandomAgent(Agent):
    """Samples every action uniformly from an action space: a baseline for other agents."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.action_space = action_space

    def seed(self, seed: int) -> None:
        self.action_space.seed(seed)

    def act(
        self, observations: nest.Tree, state: Any, is_first: np.ndarray, greedy: bool = False
    ) -> tuple[nest.Tree, Any, dict[str, np.ndarray]]:
        samples = [self.action_space.sample() for _ in range(len(is_first))]
        return nest.map(lambda *parts: np.stack(parts), *samples), state, {}
