"""RandomAgent: any action of the space, as the environment takes it, again from the same seed."""

import numpy as np
import pytest
from gymnasium import spaces

from tinyverse.agents.agent import Agent, RandomAgent
from tinyverse.core import nest

SPACES = {
    "discrete": spaces.Discrete(3, start=2),
    "box": spaces.Box(-1, 1, (2, 3), np.float32),
    "bits": spaces.MultiBinary(4),
    "nested": spaces.Dict(
        {"a": spaces.Discrete(2), "b": spaces.Tuple((spaces.Box(0, 1, (1,)), spaces.MultiDiscrete([2, 3])))}
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_of_the_space(name):
    space = SPACES[name]
    agent = RandomAgent(None, space)
    agent.seed(3)
    actions, state, extras = agent.act(np.zeros((5, 2)), agent.initial_state(5), np.ones(5, bool))
    assert all(leaf.shape[0] == 5 for leaf in nest.leaves(actions))
    assert all(space.contains(nest.map(lambda leaf, game=game: leaf[game], actions)) for game in range(5))
    assert state == () and extras == {} and agent.state_arrays(state) == ()


def test_a_seed_repeats_and_another_does_not():
    agent, is_first = RandomAgent(None, spaces.Discrete(1000)), np.ones(20, bool)

    def play(seed):
        agent.seed(seed)
        return [agent.act(None, (), is_first)[0] for _ in range(3)]

    np.testing.assert_array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


def test_actions_are_uniform():
    agent = RandomAgent(None, spaces.Discrete(4))
    agent.seed(0)
    actions, _, _ = agent.act(None, (), np.ones(4000, bool))
    counts = np.bincount(actions, minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi square, 3 degrees of freedom, p = 0.001


def test_a_random_agent_has_no_weights_and_takes_any():
    agent = RandomAgent(None, spaces.Discrete(2))
    assert agent.get_weights() == {}
    agent.set_weights({})


def test_an_agent_must_act():
    with pytest.raises(NotImplementedError, match="Agent must define act"):
        Agent().act(None, (), np.ones(1, bool))
