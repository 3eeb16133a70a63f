"""Masked actions: what is not available has probability 0, in playing and in learning, whatever the mask says."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.ppo import PPO
from tinyverse.algorithms.vtrace import VTrace
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks import LSTM, MLP, Categorical, ModularNetwork

torch.set_num_threads(1)

T, B = 12, 6
ACTIONS = {
    "discrete": spaces.Discrete(5, start=2),
    "multidiscrete": spaces.MultiDiscrete([2, 3, 4], start=[0, 1, -2]),
    "multibinary": spaces.MultiBinary(3),
    "tree": spaces.Dict(
        aim=spaces.Box(-1, 1, (2,)), move=spaces.Discrete(4), use=spaces.Tuple([spaces.MultiDiscrete([2, 3])])
    ),
}
COUNTS = {"discrete": [5], "multidiscrete": [2, 3, 4], "multibinary": [2, 2, 2], "tree": [4, 2, 3]}


def observed(name, kind="binary"):
    options = sum(COUNTS[name])
    mask = spaces.MultiBinary(options) if kind == "binary" else spaces.Box(0, 1, (options,))
    return spaces.Dict(available_actions=mask, ahead=spaces.Box(-1, 1, (3,)), zone=spaces.Discrete(2))


def agent_of(name, kind="binary", **parts):
    torch.manual_seed(0)
    agent = TorchAgent(ModularNetwork(observed(name, kind), ACTIONS[name], **parts))
    agent.seed(0)
    with torch.no_grad():
        for head in agent.network.heads:
            head.linear.weight.normal_()  # far from uniform
    return agent


def masks_of(counts, rows, rng):
    """[rows, Σ counts] of 0 and 1, with something available in every choice."""
    mask = rng.random((rows, sum(counts))) < 0.4
    start = 0
    for count in counts:
        mask[np.arange(rows), start + rng.integers(count, size=rows)] = True
        start += count
    return mask.astype(np.int8)


def observe(name, rng, rows=200):
    mask = masks_of(COUNTS[name], rows, rng)
    ahead = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
    return {"available_actions": mask, "ahead": ahead, "zone": rng.integers(2, size=rows)}


def entries(name, actions):
    """Chosen options [rows, choices], each from 0, in the order of the mask."""
    if name == "discrete":
        return np.asarray(actions)[:, None] - 2
    if name == "tree":
        return np.concatenate([actions["move"][:, None], actions["use"][0]], 1)
    return actions - np.array([0, 1, -2]) if name == "multidiscrete" else actions


@pytest.mark.parametrize("kind", ["binary", "box"])
@pytest.mark.parametrize("name", ACTIONS)
def test_only_available_actions_are_taken(name, kind):
    agent, rng = agent_of(name, kind), np.random.default_rng(0)
    seen = set()
    for turn in range(20):
        observations = observe(name, rng)
        if kind == "box":
            observations["available_actions"] = observations["available_actions"].astype(np.float32)
        actions, _, extras = agent.act(observations, (), np.zeros(200, bool), greedy=turn == 0)
        chosen, offsets = entries(name, actions), np.cumsum([0, *COUNTS[name][:-1]])
        assert chosen.shape == (200, len(COUNTS[name]))
        assert (np.take_along_axis(observations["available_actions"], chosen + offsets, 1) == 1).all()
        assert all(np.isfinite(extra).all() for extra in extras.values())
        seen |= {(choice, option) for row in chosen for choice, option in enumerate(row)}
    assert len(seen) == sum(COUNTS[name]), "every option was available somewhere, and taken"


@pytest.mark.parametrize("name", ["discrete", "multidiscrete", "multibinary"])
def test_the_rest_share_what_is_left(name):
    """Probabilities, entropy and mode by the definition: softmax over the available ones alone."""
    agent, rng = agent_of(name), np.random.default_rng(1)
    network, observations = (
        agent.network,
        {key: torch.tensor(leaf[None]) for key, leaf in observe(name, rng, 30).items()},
    )
    with torch.no_grad():
        bare = network.heads[0](features_of(network, observations))[0].double()
        outputs, _ = network(observations, (), torch.zeros(1, 30, dtype=torch.bool))
    policy = network.distribution((outputs.policy[0][0],))
    parts = policy.parts if hasattr(policy, "parts") else [policy]
    entropies, modes = torch.zeros(30).double(), []
    splits = [rows.split(COUNTS[name], -1) for rows in (bare, observations["available_actions"][0])]
    for part, logits, mask in zip(parts, *splits, strict=True):
        for row in range(30):
            open_ones = mask[row].nonzero()[:, 0]
            p = torch.softmax(logits[row, open_ones], 0)
            got = part.logits[row].double()
            torch.testing.assert_close(got[open_ones].exp(), p, atol=1e-5, rtol=1e-4)
            closed = (mask[row] == 0).nonzero()[:, 0]
            assert (got[closed].exp() == 0).all()
            assert got[closed].isfinite().all()
            entropies[row] -= (p * p.log()).sum()
        modes.append(torch.where(mask == 1, logits, -math.inf).argmax(-1) + part.start)
    torch.testing.assert_close(policy.entropy().double(), entropies, atol=1e-5, rtol=1e-4)
    assert torch.equal(policy.mode(), modes[0] if name == "discrete" else torch.stack(modes, -1))


def features_of(network, observations):
    inputs = {"ahead": observations["ahead"], "zone": torch.nn.functional.one_hot(observations["zone"], 2).float()}
    parts = [trunk.module(inputs[key][0]) for key, trunk in zip(inputs, network.trunks, strict=True)]
    return torch.cat(parts, -1)[None]


def test_trunks_do_not_see_the_mask():
    agent, rng = agent_of("discrete"), np.random.default_rng(0)
    observations = observe("discrete", rng)
    assert len(agent.network.trunks) == 2
    rows = {key: torch.tensor(leaf[None]) for key, leaf in observations.items()}
    values = agent.network(rows, (), torch.zeros(1, 200, dtype=torch.bool))[0].values
    rows["available_actions"] = 1 - rows["available_actions"]
    assert torch.equal(agent.network(rows, (), torch.zeros(1, 200, dtype=torch.bool))[0].values, values)


@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_available_is_no_nan(name):
    agent = agent_of(name)
    observations = observe(name, np.random.default_rng(0), 5)
    observations["available_actions"][:] = 0
    rows = {key: torch.tensor(leaf[None]) for key, leaf in observations.items()}
    outputs, _ = agent.network(rows, (), torch.zeros(1, 5, dtype=torch.bool))
    policy = agent.network.distribution(outputs.policy)
    actions = policy.sample()
    total = policy.log_prob(actions).sum() + policy.entropy().sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in agent.network.parameters() if p.grad is not None)
    if name == "multidiscrete":
        torch.testing.assert_close(policy.entropy()[0], torch.full((5,), math.log(2 * 3 * 4)))


def test_no_gradient_reaches_a_masked_logit():
    agent = agent_of("discrete")
    observations = observe("discrete", np.random.default_rng(0), 50)
    observations["available_actions"][:] = [1, 0, 1, 1, 0]
    rows = {key: torch.tensor(leaf[None]) for key, leaf in observations.items()}
    outputs, _ = agent.network(rows, (), torch.zeros(1, 50, dtype=torch.bool))
    policy = agent.network.distribution(outputs.policy)
    (policy.log_prob(policy.sample()) * torch.randn(1, 50) + policy.entropy()).sum().backward()
    moved = agent.network.heads[0].linear.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, True, False]


def play(agent, name, rng, state):
    """A batch with random ends; masks of the rows that are a reset, and of those before it, are anything at all."""
    valid = rng.random((T, B)) < 0.8
    terminated = np.zeros((T, B), bool)
    terminated[:-1] = ~valid[1:]
    observations, columns, is_first = [], [], np.zeros(B, bool)
    for t in range(T + 1):
        seen = observe(name, rng, B)
        if t < T:
            arbitrary = rng.integers(2, size=seen["available_actions"].shape)
            seen["available_actions"] = np.where(
                valid[t][:, None], seen["available_actions"], arbitrary * rng.integers(2)
            )
            actions, state, extras = agent.act(seen, state, is_first)
            columns.append((torch.as_tensor(actions), torch.as_tensor(extras["behaviour_log_prob"])))
            is_first = ~valid[t]
        observations.append({key: torch.as_tensor(leaf) for key, leaf in seen.items()})
    actions, log_probs = (torch.stack(column) for column in zip(*columns, strict=True))
    return Batch(
        observations={key: torch.stack([row[key] for row in observations]) for key in observations[0]},
        actions=actions,
        rewards=torch.tensor(rng.normal(size=(T, B)), dtype=torch.float32),
        terminated=torch.tensor(terminated),
        truncated=torch.zeros(T, B, dtype=torch.bool),
        valid=torch.tensor(valid),
        initial_state=agent.initial_state(B),
        extras={"behaviour_log_prob": log_probs},
        weights=torch.ones(B),
        lag=torch.zeros(B),
        slots=torch.arange(B),
    )


@pytest.mark.parametrize("algorithm", [VTrace, PPO])
@pytest.mark.parametrize("name", ["discrete", "multidiscrete"])
def test_algorithms_learn_as_ever(name, algorithm):
    agent, rng = agent_of(name, trunk={"ahead": MLP(8)}, body=LSTM(8)), np.random.default_rng(0)
    learner = algorithm(agent, learning_rate=1e-2)
    for _ in range(5):
        batch = play(agent, name, rng, agent.initial_state(B))
        network = agent.network
        outputs, _ = network(batch.observations, batch.initial_state, batch.is_first)
        policy = network.distribution(tuple(leaf[:-1] for leaf in outputs.policy))
        torch.testing.assert_close(
            policy.log_prob(batch.actions), batch.extras["behaviour_log_prob"], atol=1e-4, rtol=1e-4
        )
        metrics = learner.train_step(batch)
        assert all(math.isfinite(metric) for metric in metrics.values())
        assert 0 < metrics["policy/entropy"] < math.log(math.prod(COUNTS[name]))
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


@pytest.mark.parametrize("algorithm", [VTrace, PPO])
def test_what_is_masked_is_learned_around(algorithm):
    """A bandit whose best arm is closed half of the time: then the second best is taken."""
    agent, rng = agent_of("discrete", trunk={"ahead": MLP(8)}), np.random.default_rng(0)
    with torch.no_grad():
        agent.network.heads[0].linear.weight.mul_(0.01)
    learner, worth = algorithm(agent, learning_rate=1e-2, optimizer="adam", reward_clip=None), torch.arange(5.0)
    for _ in range(60):
        batch = play(agent, "discrete", rng, ())
        batch.rewards, batch.terminated = worth[batch.actions - 2] * batch.valid, torch.ones(T, B, dtype=torch.bool)
        learner.train_step(batch)
    observations = observe("discrete", rng)
    actions, _, _ = agent.act(observations, (), np.zeros(200, bool), greedy=True)
    best = [max(np.flatnonzero(row)) for row in observations["available_actions"]]
    assert np.mean(actions - 2 == best) > 0.9


@pytest.mark.parametrize(
    ("mask", "action_space", "words"),
    [
        (spaces.MultiBinary(4), spaces.Discrete(5), ["MultiBinary(4)", "Discrete(5)", "5 options"]),
        (spaces.Box(0, 1, (5,)), spaces.MultiDiscrete([2, 4]), ["Box(0.0, 1.0, (5,)", "6 options"]),
        (spaces.Discrete(5), spaces.Discrete(5), ["Discrete(5)", "MultiBinary(5)"]),
        (spaces.Box(0, 1, (0,)), spaces.Box(-1, 1, (2,)), ["0 options", "rename"]),
    ],
)
def test_masks_that_do_not_fit_name_both_ends(mask, action_space, words):
    space = spaces.Dict(available_actions=mask, ahead=spaces.Box(-1, 1, (3,)))
    with pytest.raises(SettingsError) as caught:
        ModularNetwork(space, action_space)
    for word in words:
        assert word in str(caught.value)


def test_a_mask_alone_is_no_observation_and_has_no_trunk():
    with pytest.raises(SettingsError, match="nothing to see"):
        ModularNetwork(spaces.Dict(available_actions=spaces.MultiBinary(2)), spaces.Discrete(2))
    with pytest.raises(SettingsError, match="trunk for 'available_actions', but the observations are ahead, zone"):
        ModularNetwork(observed("discrete"), ACTIONS["discrete"], trunk={"available_actions": MLP(4)})


def test_the_key_elsewhere_is_an_observation_like_any_other():
    space = spaces.Dict(inner=spaces.Dict(available_actions=spaces.MultiBinary(2)))
    assert len(ModularNetwork(space, spaces.Discrete(5)).trunks) == 1


def test_a_logit_of_minus_infinity_is_a_probability_of_0():
    """0 log 0 = 0, in the entropy and in its gradient; 0.663 nats by hand."""
    logits = torch.tensor([0.5, -torch.inf, 1.0], requires_grad=True)
    policy = Categorical(logits)
    exact = torch.distributions.Categorical(probs=torch.tensor([0.5, 1.0]).softmax(0)).entropy()
    torch.testing.assert_close(policy.entropy(), exact)
    (policy.entropy() + policy.log_prob(torch.tensor(2))).backward()
    assert logits.grad.isfinite().all()
