"""TorchAgent: NumPy in and out, its own random numbers, weights that are copies and are checked."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.core import nest
from tinyverse.core.errors import SpecError
from tinyverse.networks import LSTM, MLP, ModularNetwork, NatureConv, Window

torch.set_num_threads(1)

N = 6
VECTOR = spaces.Box(-1, 1, (4,))
FRAME = spaces.Box(0, 255, (36, 36), np.uint8)


def agent_of(observation_space=VECTOR, action_space=spaces.Discrete(3, start=2), **parts):  # noqa: B008
    torch.manual_seed(0)
    agent = TorchAgent(ModularNetwork(observation_space, action_space, **parts))
    agent.seed(0)
    return agent


def observe(space, n=N):
    space.seed(0)
    return nest.map(lambda *parts: np.stack(parts), *(space.sample() for _ in range(n)))


@pytest.fixture
def observations():
    return observe(VECTOR)


ALIVE = np.zeros(N, bool)


def test_actions_and_extras_are_arrays_the_environment_takes(observations):
    agent = agent_of()
    actions, state, extras = agent.act(observations, agent.initial_state(N), ALIVE)
    assert actions.dtype == np.int64
    assert actions.shape == (N,)
    assert set(actions) <= {2, 3, 4}
    assert state == ()
    assert {name: (extra.shape, extra.dtype.name) for name, extra in extras.items()} == {
        "behaviour_log_prob": ((N,), "float32"),
        "behaviour_logits": ((N, 3), "float32"),
    }
    chosen = extras["behaviour_logits"][np.arange(N), actions - 2]
    normaliser = np.log(np.exp(extras["behaviour_logits"]).sum(1))
    np.testing.assert_allclose(extras["behaviour_log_prob"], chosen - normaliser, atol=1e-6)


def test_a_tree_of_actions_has_one_log_probability():
    space = spaces.Dict(move=spaces.Discrete(3), steer=spaces.Box(-1, 1, (2,)))
    agent = agent_of(action_space=space)
    actions, _, extras = agent.act(observe(VECTOR), (), ALIVE)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in actions.items()} == {
        "move": ((N,), "int64"),
        "steer": ((N, 2), "float32"),
    }
    assert list(extras) == ["behaviour_log_prob"]
    gaussian = -0.5 * (actions["steer"] ** 2).sum(1) - math.log(2 * math.pi)  # means are near 0, deviations 1
    np.testing.assert_allclose(extras["behaviour_log_prob"], gaussian + math.log(1 / 3), atol=0.2)


def test_box_actions_are_raw_samples():
    agent = agent_of(action_space=spaces.Box(-0.01, 0.01, (2,)))
    actions, _, _ = agent.act(observe(VECTOR), (), ALIVE)
    assert np.abs(actions).max() > 0.1


def test_greedy_is_the_most_likely_action(observations):
    agent = agent_of()
    actions, _, extras = agent.act(observations, (), ALIVE, greedy=True)
    assert (actions == 2 + extras["behaviour_logits"].argmax(1)).all()
    box = agent_of(action_space=spaces.Box(-1, 1, (2,)))
    np.testing.assert_allclose(box.act(observations, (), ALIVE, greedy=True)[0], 0, atol=0.1)


def test_the_seed_decides_and_torchs_own_generator_does_not(observations):
    agent, played = agent_of(), []
    for seed in (1, 1, 2):
        agent.seed(seed)
        torch.manual_seed(len(played))
        played.append([agent.act(observations, (), ALIVE)[0].tolist() for _ in range(5)])
    assert played[0] == played[1] != played[2]


def test_two_agents_without_a_seed_play_differently(observations):
    agents = [TorchAgent(agent_of().network) for _ in range(2)]
    played = [[agent.act(observations, (), ALIVE)[0].tolist() for _ in range(10)] for agent in agents]
    assert played[0] != played[1]


def test_a_seed_survives_a_change_of_precision(observations):
    agents = agent_of(), agent_of().to(dtype=torch.bfloat16)
    noise = [torch.rand(3, generator=agent.generator).tolist() for agent in agents]
    assert noise[0] == noise[1]


def test_read_only_and_strided_arrays_are_taken_without_a_warning():
    agent = agent_of()
    given = np.repeat(observe(VECTOR), 2, axis=0)[::2]
    expected = agent.act(given, (), ALIVE, greedy=True)[2]["behaviour_logits"]
    given.flags.writeable = False
    weights = {name: array.copy() for name, array in agent.get_weights().items()}
    for array in weights.values():
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.set_weights(weights)
        np.testing.assert_array_equal(agent.act(given, (), ALIVE, greedy=True)[2]["behaviour_logits"], expected)


def test_memory_becomes_arrays_and_first_resets_it():
    agent = agent_of(FRAME, trunk=Window(3, NatureConv(8)), body=LSTM(5))
    frames, state = observe(FRAME), agent.initial_state(N)
    shapes = {"m.trunk0": ((N, 2, 36, 36), "uint8"), "m.body.h": ((N, 5), "float32"), "m.body.c": ((N, 5), "float32")}
    arrays = nest.flatten(agent.state_arrays(state), "m")
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == shapes
    _, state, _ = agent.act(frames, state, ALIVE)
    kept = nest.flatten(agent.state_arrays(state), "m")
    np.testing.assert_array_equal(kept["m.trunk0"][:, 1], frames)
    assert not kept["m.trunk0"][:, 0].any()
    is_first = ALIVE.copy()
    is_first[2] = True
    _, state, _ = agent.act(frames, state, is_first)
    window = agent.state_arrays(state)["trunk0"]
    assert not window[2, 0].any()
    np.testing.assert_array_equal(window[3, 0], frames[3])


def test_weights_are_contiguous_copies():
    agent = agent_of(FRAME, trunk=NatureConv(8))
    weights = agent.get_weights()
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in weights.values())
    before = {name: array.copy() for name, array in weights.items()}
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.add_(1)
    assert all((weights[name] == before[name]).all() for name in weights)
    agent.set_weights(weights)
    for array in weights.values():
        array += 7
    assert all((array == before[name]).all() for name, array in agent.get_weights().items())
    assert agent.network.trunks[0].module.layers[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_carry_an_agent_over(observations):
    one, other = agent_of(trunk=MLP(8)), agent_of(trunk=MLP(8))
    with torch.no_grad():
        for parameter in one.network.parameters():
            parameter.normal_()
    other.set_weights(one.get_weights())
    for agent in (one, other, twin := copy.deepcopy(one)):
        agent.seed(3)
    played = [agent.act(observations, (), ALIVE)[2]["behaviour_logits"] for agent in (one, other, twin)]
    np.testing.assert_array_equal(played[0], played[1])
    np.testing.assert_array_equal(played[0], played[2])


def test_weights_that_do_not_fit_are_refused_whole():
    agent = agent_of()
    weights = agent.get_weights()
    name = "heads.0.linear.weight"
    lacking = {key: array for key, array in weights.items() if key != name}
    wrong = {key: array + 1 for key, array in weights.items()} | {name: np.zeros((2, 64), np.float32)}
    with pytest.raises(SpecError, match=r"'heads.0.linear.weight'.*\(3, 64\).*no such weight"):
        agent.set_weights(lacking)
    with pytest.raises(SpecError, match=r"'more'.*has no such weight.*\(1,\)"):
        agent.set_weights({**weights, "more": np.zeros(1, np.float32)})
    with pytest.raises(SpecError, match=r"\(3, 64\).*\(2, 64\)"):
        agent.set_weights(wrong)
    assert all((array == weights[key]).all() for key, array in agent.get_weights().items())


def test_a_bfloat16_player_takes_and_gives_float32_weights(observations):
    agent = agent_of()
    weights, state = agent.get_weights(), agent.initial_state(N)
    expected = agent.act(observations, state, ALIVE)[2]["behaviour_logits"]
    agent.to(dtype=torch.bfloat16).set_weights(weights)
    _, _, extras = agent.act(observations, state, ALIVE)
    assert extras["behaviour_logits"].dtype == np.float32
    np.testing.assert_allclose(extras["behaviour_logits"], expected, atol=0.02)
    assert {array.dtype.name for array in agent.get_weights().values()} == {"float32"}
