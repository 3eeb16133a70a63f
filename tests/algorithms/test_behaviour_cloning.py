"""Behaviour cloning: what cannot be imitated teaches nothing, and somebody says so."""

import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import agent_of, play
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import BehaviourCloning
from tinyverse.algorithms.behaviour_cloning import PATIENCE
from tinyverse.core.errors import SettingsError
from tinyverse.networks import MLP, ModularNetwork


def test_batches_without_people_are_said_after_a_while():
    agent = agent_of()
    learner, batch = BehaviourCloning(agent), play(agent, 4, 5)
    for _ in range(PATIENCE - 1):
        learner.train_step(batch)
    with pytest.raises(SettingsError, match=r"nothing that BehaviourCloning\(whom='human'\) imitates.*whom='all'"):
        learner.train_step(batch)
    batch.human = torch.tensor([True, False, False, False])
    learner.train_step(batch)
    BehaviourCloning(agent, whom="all").train_step(batch)


def test_an_action_that_the_mask_forbids_is_not_learned():
    observed = spaces.Dict(place=spaces.Box(0, 1, (3,)), available_actions=spaces.MultiBinary(2))
    agent = TorchAgent(ModularNetwork(observed, spaces.Discrete(2), trunk=MLP(8)))
    learner, batch = BehaviourCloning(agent, whom="all"), play(agent_of(), 4, 5)
    allowed = torch.zeros(6, 4, 2)
    allowed[..., 0] = 1
    batch.observations = {"place": torch.rand(6, 4, 3), "available_actions": allowed}
    batch.actions[:] = 1
    before = {name: array.copy() for name, array in agent.get_weights().items()}
    metrics = learner.train_step(batch)
    assert float(metrics["loss/total"]) == float(metrics["imitation/rows"]) == float(metrics["grad_norm"]) == 0
    assert all((array == before[name]).all() for name, array in agent.get_weights().items())
    batch.actions[0] = 0
    assert 0 < float(learner.train_step(batch)["imitation/rows"]) < 1
