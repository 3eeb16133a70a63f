"""Networks: acting step by step is training all at once; the state begins anew; ends that do not fit are named."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional

from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks import (
    LSTM,
    MLP,
    Categorical,
    CategoricalHead,
    DiagonalGaussian,
    Identity,
    Joint,
    ModularNetwork,
    NatureConv,
    SmallConv,
    Stack,
    Window,
)
from tinyverse.networks.bodies import stack_windows

torch.set_num_threads(1)

T, B = 7, 3
VECTOR = spaces.Box(-1, 1, (4,))
FRAME = spaces.Box(0, 255, (40, 36), np.uint8)
TREE = spaces.Dict(
    image=spaces.Box(0, 255, (2, 36, 36), np.uint8),
    pair=spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 4])]),
    flags=spaces.MultiBinary(3),
)
ACTIONS = spaces.Dict(
    move=spaces.Discrete(3, start=5),
    steer=spaces.Box(-1, 1, (2, 2)),
    keys=spaces.MultiBinary(4),
    choice=spaces.MultiDiscrete([2, 3], start=[1, -1]),
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows_of(space, steps=T, num_envs=B):
    space.seed(0)
    samples = [[space.sample() for _ in range(num_envs)] for _ in range(steps)]
    columns = [nest.map(lambda *parts: np.stack(parts), *row) for row in samples]
    return nest.map(lambda *parts: torch.from_numpy(np.stack(parts)), *columns)


NETWORKS = {
    "memoryless": lambda: ModularNetwork(VECTOR, spaces.Discrete(2), trunk=MLP(8), body=MLP(8)),
    "lstm": lambda: ModularNetwork(VECTOR, spaces.Discrete(2), body=LSTM(8)),
    "window": lambda: ModularNetwork(FRAME, spaces.Discrete(2), trunk=Window(4, NatureConv(16))),
    "window of vectors": lambda: ModularNetwork(VECTOR, spaces.Discrete(2), trunk=Window(9, MLP(8))),
    "value apart": lambda: ModularNetwork(VECTOR, spaces.Discrete(2), body=LSTM(8), value_trunk=Window(3, MLP(8))),
    "everything": lambda: ModularNetwork(
        TREE, ACTIONS, trunk={"image": Window(3, NatureConv(16)), "pair.0": Window(2, MLP(4))}, body=LSTM(8)
    ),
}
SPACES = {"window": FRAME, "everything": TREE}


@pytest.mark.parametrize("p_first", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_stepping_is_unrolling(name, p_first):
    network, observations = NETWORKS[name](), rows_of(SPACES.get(name, VECTOR))
    is_first = torch.rand(T, B) < p_first
    state = nest.map(torch.clone, network.initial_state(B))
    with torch.no_grad():
        _, state = network(observations, state, torch.zeros(T, B, dtype=torch.bool))  # not the state of a beginning
        whole, last = network(observations, state, is_first)
        steps = []
        for t in range(T):
            outputs, state = network(nest.map(lambda x: x[t : t + 1], observations), state, is_first[t : t + 1])
            steps.append(outputs)
    for parts, expected in zip(zip(*(step.policy for step in steps), strict=True), whole.policy, strict=True):
        torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([step.values for step in steps]), whole.values, atol=1e-5, rtol=1e-5)
    assert nest.flatten(state, "m").keys() == nest.flatten(last, "m").keys()
    nest.map(lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5), state, last)


@pytest.mark.parametrize("name", ["lstm", "window", "window of vectors", "everything"])
def test_a_first_row_forgets(name):
    """After a restart nothing depends on what was before; without one it does."""
    network, observations = NETWORKS[name](), rows_of(SPACES.get(name, VECTOR))
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[5] = True
    fresh = network.initial_state(B)
    used = nest.map(lambda x: torch.full_like(x, 3), fresh)
    with torch.no_grad():
        a, b = network(observations, fresh, is_first)[0].values, network(observations, used, is_first)[0].values
    assert torch.equal(a[5:], b[5:])
    assert not torch.allclose(a[0], b[0], atol=1e-5)


def test_memory_survives_the_wire():
    """Flattened to names and back, as a session does, a state still fits: stages without any leave no holes."""
    network, observations = NETWORKS["everything"](), rows_of(TREE)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    state = network(observations, network.initial_state(B), is_first)[1]
    assert set(state) == {"trunk1", "trunk2", "body"}
    restored = nest.unflatten(nest.flatten(state, "state"), "state")
    expected, got = network(observations, state, is_first), network(observations, restored, is_first)
    assert torch.equal(expected[0].values, got[0].values)
    assert NETWORKS["memoryless"]().initial_state(B) == ()


@pytest.mark.parametrize("k", [2, 4, 12])
def test_windows_hold_the_newest_frames_of_the_episode(k):
    frames = torch.randint(1, 255, (T, B, 2, 2), dtype=torch.uint8)
    state = torch.randint(1, 255, (B, k - 1, 2, 2), dtype=torch.uint8)
    is_first = torch.rand(T, B) < 0.3
    windows = stack_windows(frames, state, is_first)
    for b in range(B):
        history = list(state[b])
        for t in range(T):
            history = [torch.zeros(2, 2, dtype=torch.uint8)] * k if is_first[t, b] else history
            history = [*history, frames[t, b]]
            assert torch.equal(windows[t, b], torch.stack(history[-k:]))


def test_a_recurrent_gradient_stops_at_first():
    network = ModularNetwork(VECTOR, spaces.Discrete(2), trunk=Identity(), body=LSTM(8))
    observations, is_first = torch.randn(T, B, 4, requires_grad=True), torch.zeros(T, B, dtype=torch.bool)
    is_first[4] = True
    network(observations, network.initial_state(B), is_first)[0].values[-1].sum().backward()
    assert (observations.grad[:4] == 0).all()
    assert (observations.grad[4:] != 0).any()


def test_nature_conv_is_the_papers_network_on_bytes_divided_by_255():
    conv = NatureConv()
    assert conv.build((4, 84, 84)) == 512
    images = torch.randint(0, 255, (2, 4, 84, 84), dtype=torch.uint8)
    x = images.double() / 255
    for layer, stride in zip(conv.layers, (4, 2, 1), strict=True):
        x = nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), stride).relu()
    assert x.shape == (2, 64, 7, 7)
    expected = nn.functional.linear(x.permute(0, 2, 3, 1).flatten(1), conv.dense.weight.double()).relu()
    torch.testing.assert_close(conv(images).double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(36, 36), (40, 97), (210, 160)])
def test_nature_conv_takes_other_sizes_without_channels(size):
    conv = NatureConv(8)
    assert conv.build(size) == 8
    assert conv(torch.randint(0, 255, (2, *size), dtype=torch.uint8)).shape == (2, 8)


def test_any_module_can_be_a_trunk():
    network = ModularNetwork(VECTOR, spaces.Discrete(2), trunk=nn.Linear(4, 6), body=nn.Linear(6, 5))
    assert network.heads[0].linear.in_features == 5
    images = ModularNetwork(spaces.Box(0, 1, (3, 9, 9)), spaces.Discrete(2), trunk=nn.Conv2d(3, 8, 3))
    assert images.heads[0].linear.in_features == 8 * 7 * 7


class Promising(nn.Module):
    """Gives what it got, whatever it says."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def build(self, shape):
        return self.features

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trunk": NatureConv()}, ["NatureConv", "Box(-1.0, 1.0, (4,)", "(height, width)"]),
        ({"trunk": Window(4, NatureConv())}, ["NatureConv", "(4,)"]),
        ({"trunk": nn.Linear(5, 6)}, ["Linear", "(4,)"]),
        ({"body": nn.Linear(5, 6)}, ["Linear", "64 embeddings"]),
        ({"trunk": {"image": MLP(4)}}, ["'image'", "no tree"]),
        ({"observation_space": TREE, "trunk": MLP(4)}, ["One trunk for 4", "by name", "pair.0"]),
        ({"observation_space": spaces.Text(4)}, ["cannot see", "Text"]),
        (
            {"observation_space": spaces.Box(0, 255, (210, 160, 3), np.uint8)},
            ["NatureConv", "(210, 160, 3)", "channels, height"],
        ),
        ({"trunk": Promising(8)}, ["Promising promises 8 features", "(4,)", "(1, 2, 4)"]),
        ({"body": Promising(65)}, ["Promising promises 65 features of 64 embeddings", "(1, 2, 64)"]),
        ({"body": Stack(LSTM(8), nn.Linear(5, 6))}, ["Linear does not fit 8 features of LSTM"]),
        ({"trunk": MLP}, ["MLP'> is no part of a network", "MLP(64)"]),
        ({"body": "lstm"}, ["'lstm' is no part of a network"]),
        (
            {"head": lambda space, features: CategoricalHead(space, 5)},
            ["CategoricalHead", "64 features", "Discrete(2)"],
        ),
        ({"action_space": spaces.Text(4)}, ["No head", "Text"]),
        ({"action_space": spaces.Box(0, 9, (2,), np.int64)}, ["No head", "int64"]),
    ],
)
def test_ends_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(SettingsError) as caught:
        ModularNetwork(**{"observation_space": VECTOR, "action_space": spaces.Discrete(2), **arguments})
    for word in words:
        assert word in str(caught.value)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(SettingsError, match=r"Window\(1\)"):
        Window(1)
    with pytest.raises(SettingsError, match="no layers"):
        MLP()


def test_usual_trunks():
    network = ModularNetwork(TREE, spaces.Discrete(2))
    names = [type(stage.module).__name__ for stage in network.trunks]
    assert names == ["MLP", "NatureConv", "MLP", "MLP"]  # flags, image, pair.0, pair.1
    assert network.encoders[2](torch.tensor([[-1, 1]])).tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert network.encoders[3](torch.tensor([[[1, 3]]])).tolist() == [[[0, 1, 0, 0, 0, 1]]]


def test_initialisation():
    network = ModularNetwork(VECTOR, spaces.Discrete(3), trunk=MLP(64, 64))
    hidden = network.trunks[0].module.layers[2].weight
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(64), atol=1e-4, rtol=0)
    policy = network.heads[0].linear.weight
    torch.testing.assert_close(policy @ policy.T, 1e-4 * torch.eye(3), atol=1e-7, rtol=0)
    assert network.value.linear.weight.norm().item() == pytest.approx(1, rel=1e-4)


def test_a_joint_action_has_the_sum_of_log_probabilities():
    network = NETWORKS["everything"]()
    is_first = torch.zeros(T, B, dtype=torch.bool)
    with torch.no_grad():
        outputs, _ = network(rows_of(TREE), network.initial_state(B), is_first)
    policy = network.distribution(tuple(torch.randn_like(leaf) for leaf in outputs.policy))
    actions = policy.sample(torch.Generator().manual_seed(0))
    shapes = {name: tuple(leaf.shape) for name, leaf in actions.items()}
    assert shapes == {"choice": (T, B, 2), "keys": (T, B, 4), "move": (T, B), "steer": (T, B, 2, 2)}
    assert set(actions["move"].unique().tolist()) <= {5, 6, 7}
    assert set(actions["choice"][..., 1].unique().tolist()) == {-1, 0, 1}
    total = sum(
        part.log_prob(actions[name.split(".")[1]]) for name, part in zip(policy.names, policy.parts, strict=True)
    )
    torch.testing.assert_close(policy.log_prob(actions), total)
    choice = policy.parts[policy.names.index("actions.choice")]
    apart = choice.parts[0].log_prob(actions["choice"][..., 0]) + choice.parts[1].log_prob(actions["choice"][..., 1])
    torch.testing.assert_close(choice.log_prob(actions["choice"]), apart)
    assert policy.log_prob(policy.mode()).shape == policy.entropy().shape == (T, B)


def torchs(policy):
    """The same distribution made of torch's own: it takes flattened actions and sums over them."""
    torch_distributions = torch.distributions
    if isinstance(policy, Categorical):
        return [(torch_distributions.Categorical(logits=policy.logits.double()), policy.start)]
    if isinstance(policy, DiagonalGaussian):
        return [(torch_distributions.Normal(policy.mean.double(), policy.log_std.double().exp()), 0)]
    return [pair for part in policy.parts for pair in torchs(part)]


def columns_of(policy, actions):
    """Actions as the entries of `torchs(policy)` take them."""
    if isinstance(policy, Categorical):
        return [actions]
    if isinstance(policy, DiagonalGaussian):
        return [actions.flatten(2)]
    if isinstance(policy, Joint):
        pairs = zip(policy.parts, nest.leaves(actions), strict=True)
        return [column for part, leaf in pairs for column in columns_of(part, leaf)]
    return list(actions.flatten(2).unbind(-1))


ACTION_SPACES = {
    "discrete": spaces.Discrete(5, start=-2),
    "multidiscrete": spaces.MultiDiscrete([2, 5, 3], start=[0, -1, 4]),
    "multidiscrete of a shape": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multibinary": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-1, 1, (2, 3)),
    "tree": ACTIONS,
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.MultiBinary(2))]),
}


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_every_action_space_has_the_distribution_of_torch(name):
    network, many = ModularNetwork(VECTOR, ACTION_SPACES[name]), 4000
    policy = tuple(
        torch.randn(1, 1, leaf.linear.out_features * (1 + hasattr(leaf, "log_std"))) for leaf in network.heads
    )
    policy = network.distribution(tuple(leaf.expand(many, 2, -1) for leaf in policy))
    actions = policy.sample(torch.Generator().manual_seed(0))
    assert ACTION_SPACES[name].__class__ is spaces.Box or ACTION_SPACES[name].contains(
        nest.map(
            lambda leaf: leaf[0, 0].numpy().clip(0, 1) if leaf.is_floating_point() else leaf[0, 0].numpy(), actions
        )
    )
    log_prob, entropy, parts = 0.0, 0.0, torchs(policy)
    for (part, start), column, mode in zip(
        parts, columns_of(policy, actions), columns_of(policy, policy.mode()), strict=True
    ):
        terms, spread = part.log_prob(column - start), part.entropy()
        log_prob = log_prob + (terms.sum(-1) if terms.ndim > 2 else terms)
        entropy = entropy + (spread.sum(-1) if spread.ndim > 2 else spread)
        torch.testing.assert_close((mode - start).double(), part.mode.double())
        if isinstance(part, torch.distributions.Categorical):
            shares = functional.one_hot(column - start, part.probs.shape[-1]).double().mean((0, 1))
            assert (shares - part.probs[0, 0]).abs().max() < 4.5 * math.sqrt(0.25 / (2 * many))
        else:
            error = (column.double() - part.mean) / part.stddev
            assert error.mean((0, 1)).abs().max() < 4.5 / math.sqrt(2 * many)
            assert (error.square().mean((0, 1)) - 1).abs().max() < 4.5 * math.sqrt(2 / (2 * many))
    torch.testing.assert_close(policy.log_prob(actions).double(), log_prob, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(policy.entropy().double(), entropy, atol=1e-4, rtol=1e-5)


def test_a_value_trunk_shares_nothing_with_the_policy():
    network = ModularNetwork(
        FRAME, spaces.Discrete(2), trunk=Window(2, NatureConv(8)), body=LSTM(8), value_trunk=Window(4, SmallConv(6))
    )
    assert network.value.linear.in_features == 6
    state = network.initial_state(B)
    assert set(state) == {"trunk0", "value0", "body"}
    outputs, after = network(rows_of(FRAME), state, torch.zeros(T, B, dtype=torch.bool))
    assert set(after) == set(state)
    outputs.values.sum().backward()
    learned = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learned == {"value_trunks", "value"}
    with pytest.raises(SettingsError, match=r"Linear does not fit observation space Box\(-1"):
        ModularNetwork(VECTOR, spaces.Discrete(2), value_trunk=nn.Linear(9, 2))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", ["autocast", "copy"])
def test_bfloat16_stays_close_and_speaks_float32(name, how):
    network, observations = NETWORKS[name](), rows_of(SPACES.get(name, VECTOR))
    is_first = torch.zeros(T, B, dtype=torch.bool)
    with torch.no_grad():
        expected, _ = network(observations, network.initial_state(B), is_first)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            network = network.bfloat16() if how == "copy" else network
            outputs, state = network(observations, network.initial_state(B), is_first)
    assert {leaf.dtype for leaf in (*outputs.policy, outputs.values)} == {torch.float32}
    assert torch.bfloat16 not in {leaf.dtype for leaf in nest.leaves(state)}
    torch.testing.assert_close(outputs.values, expected.values, atol=0.1, rtol=0.1)


def test_small_conv_is_the_network_of_2013():
    conv = SmallConv()
    assert conv.build((4, 84, 84)) == 256
    assert [tuple(layer.weight.shape) for layer in conv.layers] == [(16, 4, 8, 8), (32, 16, 4, 4)]
    assert conv.dense.weight.shape == (256, 32 * 9 * 9)


def test_a_background_is_learned_by_learning_and_taken_away_from_then_on():
    conv = NatureConv(normalization="layer", center=True)
    conv.build((4, 84, 84))
    background, wall = conv.layers[0].background, torch.randint(0, 200, (4, 84, 84), dtype=torch.uint8)
    images = wall + torch.randint(0, 50, (64, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        conv(images)
    assert not background.mean.any() and not background.count, "acting changes nothing"
    before = conv(images)
    torch.testing.assert_close(background.mean.permute(2, 0, 1), images[::4].float().mean(0))
    assert not torch.allclose(conv(images), before), "seen by the mean that was before"
    conv.eval()
    mean = background.mean.permute(2, 0, 1)
    is_first = functional.conv2d((images - mean) / 255, conv.layers[0].weight, conv.layers[0].bias, 4)
    torch.testing.assert_close(conv.layers[0](images), is_first, atol=1e-4, rtol=1e-4)
    assert background.count == 2
