"""Learner: the optimizer's steps against their formulas, states that go on where they stopped."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import agent_of, play
from tinyverse.agents.agent import Agent
from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import A2C, DQN, PPO, R2D2, VTrace
from tinyverse.algorithms.function_learner import FunctionLearner
from tinyverse.algorithms.learner import Learner
from tinyverse.algorithms.torch_learner import Optimizer, TorchLearner
from tinyverse.core.errors import SettingsError
from tinyverse.networks import ModularNetwork

torch.set_num_threads(1)


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float32))


def test_rmsprop_follows_its_formula():
    x, square, expected = parameter(1.0), 0.0, 1.0
    optimizer = Optimizer([x], "rmsprop", learning_rate=0.1)
    for _ in range(5):
        gradient = 2 * expected
        square = 0.99 * square + 0.01 * gradient**2
        expected -= 0.1 * gradient / (math.sqrt(square) + 0.01)
        optimizer.step(x.square().sum())
    assert x.item() == pytest.approx(expected, rel=1e-4)


def test_adam_follows_its_formula():
    x, m, v, expected = parameter(1.0), 0.0, 0.0, 1.0
    optimizer = Optimizer([x], "adam", learning_rate=0.1)
    for t in range(1, 6):
        gradient = 2 * expected
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-5)
        optimizer.step(x.square().sum())
    assert x.item() == pytest.approx(expected, rel=1e-4)


def test_gradients_are_reduced_then_clipped():
    x, seen = parameter(0.0, 0.0), []
    optimizer = Optimizer([x], "rmsprop", learning_rate=0.1, max_grad_norm=1.0)
    optimizer.reduce = lambda parameters: [seen.append(p.grad.tolist()) or p.grad.div_(2) for p in parameters]
    norm = optimizer.step((x * torch.tensor([6.0, 8.0])).sum())
    assert seen == [[6, 8]]
    assert norm.item() == pytest.approx(5)
    torch.testing.assert_close(x.grad, torch.tensor([0.6, 0.8]), atol=1e-4, rtol=0)


def test_without_a_limit_nothing_is_clipped():
    x = parameter(0.0)
    assert Optimizer([x], learning_rate=0.1).step(1e6 * x.sum()).item() == pytest.approx(1e6)
    assert x.grad.item() == pytest.approx(1e6)


def test_the_learning_rate_falls_to_zero_and_stays_there():
    x = parameter(0.0)
    optimizer, rates, places = Optimizer([x], learning_rate=0.5, total_updates=4), [], []
    for _ in range(6):
        rates.append(optimizer.current_learning_rate)
        optimizer.step(x.sum())
        places.append(x.item())
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125, 0, 0])
    assert np.diff(places, prepend=0) == pytest.approx([-rate for rate in rates], rel=1e-3, abs=1e-9)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(SettingsError, match="'sgdd'.*'adam' or 'rmsprop'"):
        Optimizer([parameter(0.0)], "sgdd", learning_rate=1)


class Fit(TorchLearner):
    """Makes V of a constant observation 1."""

    def __init__(self, name="adam"):
        torch.manual_seed(0)
        agent = TorchAgent(ModularNetwork(spaces.Box(-1, 1, (4,)), spaces.Discrete(2)))
        super().__init__(agent, name, learning_rate=0.01, max_grad_norm=1.0, total_updates=9)

    def train_step(self, batch):
        outputs, _ = self.agent.network(torch.ones(1, 1, 4), (), torch.zeros(1, 1, dtype=torch.bool))
        loss = (outputs.values - 1).square().mean()
        return {"loss/value": loss.detach(), "grad_norm": self.optimizer.step(loss)}


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_a_loaded_state_goes_on_exactly(name, tmp_path):
    original, resumed = Fit(name), Fit(name)
    losses = [original.train_step(None)["loss/value"].item() for _ in range(3)]
    assert losses[2] < losses[0]
    torch.save(original.state_dict(), tmp_path / "state")
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for learner in (original, resumed):
        learner.train_step(None)
    assert resumed.optimizer.updates == 4
    for mine, other in zip(original.get_weights().values(), resumed.get_weights().values(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_torch_learners_learn_where_the_network_is():
    learner = Fit()
    assert learner.device == torch.device("cpu")
    assert learner.get_weights().keys() == learner.agent.get_weights().keys()


class Counter(Agent):
    """An agent without torch: its weights are one number."""

    def __init__(self):
        self.number = np.zeros(1)

    def get_weights(self):
        return {"number": self.number.copy()}

    def set_weights(self, weights):
        self.number = weights["number"].copy()


def test_a_bare_function_becomes_a_learner():
    agent = Counter()

    def train_step(learning, batch):
        learning.number += batch
        return {"loss/total": 1.5}

    learner = FunctionLearner(train_step, agent)
    assert isinstance(learner, Learner)
    assert learner.train_step(3) == {"loss/total": 1.5}
    assert learner.device == torch.device("cpu")
    state = learner.state_dict()
    learner.train_step(4)
    assert learner.get_weights()["number"] == 7
    learner.load_state_dict(state)
    assert agent.number == 3
    assert FunctionLearner(lambda agent, batch: None, agent).train_step(0) == {}


def test_a_learner_says_what_it_lacks():
    learner = Learner()
    calls = (
        lambda: learner.train_step(None),
        learner.get_weights,
        learner.state_dict,
        lambda: learner.load_state_dict({}),
    )
    for call in calls:
        with pytest.raises(NotImplementedError, match="Learner must define"):
            call()


@pytest.mark.parametrize("algorithm", [PPO, VTrace])
def test_an_agent_that_does_not_tell_how_likely_its_actions_were_is_refused(algorithm):
    agent = agent_of()
    batch = play(agent, num_envs=4, steps=5)
    batch.extras = {}
    with pytest.raises(
        SettingsError, match=rf"{algorithm.__name__} weighs .*TorchAgent does not tell.*DQN for a QAgent"
    ):
        algorithm(agent).train_step(batch)


@pytest.mark.parametrize("algorithm", [A2C, VTrace, PPO, DQN, R2D2])
def test_a_misspelt_option_is_named_with_those_there_are(algorithm):
    agent = agent_of()
    if issubclass(algorithm, DQN):
        agent = QAgent(agent.network, spaces.Discrete(2))
    with pytest.raises(SettingsError) as refused:
        algorithm(agent, lerning_rate=1e-3)
    message = str(refused.value)
    assert message.startswith(f"{algorithm.__name__} has no option 'lerning_rate'; there are ")
    shared = {"discount", "learning_rate", "max_grad_norm", "optimizer", "return_scale", "reward_clip", "total_updates"}
    own = {"clip_rho"} if algorithm is VTrace else {"n", "eta"} if issubclass(algorithm, DQN) else {"lambda_"}
    assert shared | own <= set(message.removesuffix(".").split("there are ")[1].split(", "))
