"""Exports to ONNX act as the agent does, whatever it sees, remembers and chooses. Wants the extra `onnx`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces

from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.cli import onnx_export
from tinyverse.core import nest
from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.core.weights import WeightsFile
from tinyverse.experiment.experiment import Experiment
from tinyverse.networks import GRU, LSTM, MLP, ModularNetwork, SmallConv, Window
from tinyverse.networks.normalization import Normalized
from tinyverse.networks.squashed import SquashedActor

torch.set_num_threads(1)


VECTOR = spaces.Box(-1, 1, (4,))


FRAME = spaces.Box(0, 255, (40, 36), np.uint8)


TREE = spaces.Dict(
    image=spaces.Box(0, 255, (2, 36, 36), np.uint8),
    pair=spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 4])]),
)


ACTIONS = spaces.Dict(move=spaces.Discrete(3, start=5), steer=spaces.Box(-1, 1, (2, 2)), keys=spaces.MultiBinary(4))


TWO = spaces.Discrete(2)


AGENTS = {
    "feed-forward": (VECTOR, TWO, lambda: TorchAgent(ModularNetwork(VECTOR, TWO, trunk=Normalized(MLP(8))))),
    "lstm": (VECTOR, TWO, lambda: TorchAgent(ModularNetwork(VECTOR, TWO, body=LSTM(8)))),
    "gru": (VECTOR, TWO, lambda: TorchAgent(ModularNetwork(VECTOR, TWO, body=GRU(8)))),
    "window": (FRAME, TWO, lambda: TorchAgent(ModularNetwork(FRAME, TWO, trunk=Window(4, SmallConv())))),
    "trees": (TREE, ACTIONS, lambda: TorchAgent(ModularNetwork(TREE, ACTIONS, body=LSTM(8)))),
    "q": (VECTOR, TWO, lambda: QAgent(ModularNetwork(VECTOR, TWO, trunk=MLP(8)), TWO)),
    "squashed": (VECTOR, VECTOR, lambda: TorchAgent(SquashedActor(VECTOR, VECTOR, trunk=MLP(8)))),
}


def an_export(monkeypatch, observation_space, action_space, agent):
    """The ONNX model of an agent, as bytes."""

    class Game(Env):
        def __init__(self):
            self.observation_space, self.action_space = observation_space, action_space

        def reset(self, *, seed=None, options=None):
            return observation_space.sample(), {}

    experiment = Experiment(make_env=Game, make_agent=lambda *_: agent)
    monkeypatch.setattr(onnx_export.loader, "rebuild", lambda *_: experiment)
    found = WeightsFile(agent.get_weights(), 7, 5, 100, {"experiment": "environment", "settings": {"size": 8}})
    return onnx_export.to_onnx("environment", found)


@pytest.mark.parametrize("name", AGENTS)
def test_the_model_acts_as_the_agent(name, monkeypatch):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(0)
    observation_space, action_space, make = AGENTS[name]
    agent = make()
    session = runtime.InferenceSession(an_export(monkeypatch, observation_space, action_space, agent))
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["agreed"])["settings"] == {"size": 8} and meta["version"] == "7"
    wanted = {entry.name for entry in session.get_inputs()}
    names = [entry.name for entry in session.get_outputs()]
    num_envs = 3  # not the number it was traced with
    state = agent.initial_state(num_envs)
    own = nest.flatten(nest.map(lambda leaf: leaf.numpy() + 1, agent.network.initial_state(num_envs)), "memory")
    observation_space.seed(1)
    random = np.random.default_rng(0)
    for step in range(8):
        rows = [observation_space.sample() for _ in range(num_envs)]
        observations = nest.map(lambda *parts: np.stack(parts), *rows)
        is_first = np.ones(num_envs, bool) if step == 0 else random.random(num_envs) < 0.3
        actions, state, _ = agent.act(observations, state, is_first, greedy=True)
        given = {"first": is_first, **nest.flatten(observations, "observations"), **own}
        results = dict(zip(names, session.run(None, {k: v for k, v in given.items() if k in wanted}), strict=True))
        for leaf, action in nest.flatten(actions, "actions").items():
            np.testing.assert_allclose(results[leaf], action, atol=1e-5)
        own = {leaf: results[f"next_{leaf}"] for leaf in own}


def test_without_onnx_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'tinyverse\[onnx\]'"):
        onnx_export.to_onnx("catch", WeightsFile({}, 0))


def test_an_agent_without_a_network_is_refused(monkeypatch):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    from tests.helpers.people import an_agent

    with pytest.raises(ExperimentError, match="CountingAgent is no TorchAgent"):
        an_export(monkeypatch, VECTOR, TWO, an_agent())


def test_a_network_that_onnx_cannot_express_is_refused(monkeypatch):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")

    class Odd(torch.nn.Module):
        def build(self, shape):
            return 4

        def forward(self, x):
            return x.cummax(-1).values

    agent = TorchAgent(ModularNetwork(VECTOR, TWO, trunk=Odd()))
    with pytest.raises(ExperimentError, match="cannot be expressed in ONNX") as error:
        an_export(monkeypatch, VECTOR, TWO, agent)
    assert "\n" not in str(error.value)
