"""Trunks: they are the papers' networks, bytes are divided by 255, and normalisation is what its word says."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from tests.helpers.chains import agent_of, play
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.vtrace import VTrace
from tinyverse.core.errors import SettingsError
from tinyverse.networks import (
    MLP,
    BatchNorm,
    FourConv,
    ImpalaResNet,
    ModularNetwork,
    NatureConv,
    ResNet18,
    SmallConv,
)

torch.set_num_threads(1)

SIDE = 36
IMAGES = {
    "nature": lambda **options: NatureConv(16, **options),
    "small": lambda **options: SmallConv(16, **options),
    "four": lambda **options: FourConv(8, **options),
    "impala": lambda **options: ImpalaResNet(16, channels=(4, 8), **options),
    "resnet v1": lambda **options: ResNet18(version=1, width=4, **options),
    "resnet v2": lambda **options: ResNet18(version=2, width=4, **options),
}
KINDS = ["none", "layer", "batch"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images_of(n=5, channels=2, side=SIDE):
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8)


def built(trunk, shape=(2, SIDE, SIDE)):
    """The trunk with biases and scales away from their beginning, so that forgetting one shows."""
    size = trunk.build(shape)
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return trunk, size


def convs(trunk):
    return [layer for layer in trunk.modules() if isinstance(layer, torch.nn.Conv2d)]


def conv(layer, x, stride, padding):
    return functional.conv2d(x, layer.weight.double(), layer.bias.double(), stride, padding)


def rows_of(x):
    """[N, C, H, W] to [N, H·W·C]: the order of the dense layers' inputs."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_trunk_gives_what_it_declares_and_divides_bytes_by_255(name, kind):
    trunk, size = built(IMAGES[name](normalization=kind))
    images = images_of()
    with torch.no_grad():
        features = trunk(images)
        assert features.shape == (5, size)
        torch.testing.assert_close(trunk(images.float() / 255), features, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(trunk(images[:1]), features[:1], atol=2e-5, rtol=2e-5)  # others do not matter
    assert features.std() > 0.01
    weights = convs(trunk)[0].weight
    assert weights.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", IMAGES)
def test_images_need_no_axis_of_channels(name):
    trunk, size = built(IMAGES[name](), (40, SIDE))
    assert trunk(torch.randint(0, 256, (3, 40, SIDE), dtype=torch.uint8)).shape == (3, size)


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_too_small_are_refused(name):
    for shape in [(2, 3, 3), (7,), (1, 2, 40, 40)]:
        with pytest.raises(SettingsError, match="pixels or more"):
            IMAGES[name]().build(shape)


@pytest.mark.parametrize("trunk", [*IMAGES.values(), lambda **options: MLP(4, **options)])
def test_unknown_words_are_refused(trunk):
    with pytest.raises(SettingsError, match="'none', 'layer' or 'batch'"):
        trunk(normalization="group")


def test_resnet18_has_two_versions():
    with pytest.raises(SettingsError, match="version=3"):
        ResNet18(version=3)


def test_four_conv_is_adepts():
    trunk, size = built(FourConv(), (4, 84, 84))
    assert size == 800
    images = images_of(2, 4, 84)
    x = images.double() / 255
    for layer, (kernel, shape) in zip(convs(trunk), [(7, 40), (3, 20), (3, 10), (3, 5)], strict=True):
        assert layer.weight.shape[2:] == (kernel, kernel)
        x = conv(layer, x, 2, 1).relu()
        assert x.shape == (2, 32, shape, shape)
    torch.testing.assert_close(trunk(images).double(), rows_of(x), atol=1e-5, rtol=1e-4)


def test_impala_resnet_is_figure_3():
    trunk, size = built(ImpalaResNet(), (4, 84, 84))
    assert sum(layer.weight.numel() for layer in convs(trunk)) == 9 * (4 * 16 + 4 * 16**2 + 16 * 32 + 9 * 32**2)
    images = images_of(2, 4, 84)
    x, layers = images.double() / 255, iter(convs(trunk))
    for channels, side in [(16, 42), (32, 21), (32, 11)]:
        x = functional.max_pool2d(conv(next(layers), x, 1, 1), 3, 2, 1)
        for _ in range(2):
            inner = conv(next(layers), x.relu(), 1, 1)
            x = x + conv(next(layers), inner.relu(), 1, 1)
        assert x.shape == (2, channels, side, side)
    assert size == 256
    dense = trunk.dense
    expected = functional.linear(rows_of(x.relu()), dense.weight.double(), dense.bias.double()).relu()
    torch.testing.assert_close(trunk(images).double(), expected, atol=1e-4, rtol=1e-3)


def test_impala_channels_are_multiplied():
    trunk, _ = built(ImpalaResNet(8, width=3), (1, SIDE, SIDE))
    assert [layer.out_channels for layer in convs(trunk)] == [48] * 5 + [96] * 10
    assert trunk.dense.in_features == 96 * 5 * 5  # 36, 18, 9, 5


def layer_norm(x, weight, bias):
    centred = x - x.mean((1, 2, 3), keepdim=True)
    scaled = centred / (x.var((1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return scaled * weight.double()[:, None, None] + bias.double()[:, None, None]


@pytest.mark.parametrize("version", [1, 2])
def test_resnet18_is_the_papers(version):
    """17 convolutions and three shortcuts; V1: norm after every convolution, V2: before, and the sum untouched."""
    trunk, size = built(ResNet18(version=version, width=4))
    assert size == 32
    named = dict(trunk.named_modules())

    def norm(name, x):
        return layer_norm(x, named[name].weight, named[name].bias)

    x = conv(trunk.stem, (images := images_of(2)).double() / 255, 2, 1)
    x = functional.max_pool2d(norm("norm", x).relu() if version == 1 else x, 3, 2, 1)
    strides, seen = [1, 1, 2, 1, 2, 1, 2, 1], 1
    for i, stride in enumerate(strides):
        block, name = trunk.blocks[i], f"blocks.{i}"
        changes = stride == 2
        if version == 1:
            inner = norm(f"{name}.norm1", conv(block.conv1, x, stride, 1)).relu()
            branch = norm(f"{name}.norm2", conv(block.conv2, inner, 1, 1))
            shortcut = norm(f"{name}.shortcut.1", conv(block.shortcut[0], x, stride, 0)) if changes else x
            x = (shortcut + branch).relu()
        else:
            active = norm(f"{name}.norm1", x).relu()
            inner = norm(f"{name}.norm2", conv(block.conv1, active, stride, 1)).relu()
            x = (conv(block.projection, active, stride, 0) if changes else x) + conv(block.conv2, inner, 1, 1)
        seen += 2 + changes
    x = x if version == 1 else norm("norm", x).relu()
    assert len(convs(trunk)) == seen == 20
    torch.testing.assert_close(trunk(images).double(), x.mean((2, 3)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["impala", "resnet v1", "resnet v2"])
def test_sums_of_blocks_keep_their_size_without_normalisation(name):
    trunk = IMAGES[name]()
    trunk.build((2, SIDE, SIDE))
    growth = []

    def watch(module, inputs, output):
        growth.append((output.square().mean() / inputs[0].square().mean()).item())

    for module in trunk.modules():
        if type(module).__name__ in ("PostActivation", "PreActivation"):
            module.register_forward_hook(watch)
    trunk(images_of())
    assert len(growth) == {"impala": 4}.get(name, 8)
    assert 1 / 8 < math.prod(growth) < 8  # each block by 1 + 1/L in the mean: e in all


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(name, kind):
    trunk, _ = built(IMAGES[name](normalization=kind))
    features = trunk(images_of())
    (features * torch.randn_like(features)).sum().backward()
    assert [name for name, parameter in trunk.named_parameters() if not parameter.grad.isfinite().all()] == []
    still = [name for name, parameter in trunk.named_parameters() if not parameter.grad.any()]
    assert kind != "none" or still == []  # where all is normalised after it, a bias moves nothing
    assert [name for name in still if not name.endswith("bias")] == []


@pytest.mark.parametrize("name", ["four", "impala", "resnet v1", "resnet v2", "nature"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["autocast", "copy"])
def test_bfloat16_stays_close(name, kind, how):
    trunk, _ = built(IMAGES[name](normalization=kind))
    images = images_of()
    with torch.no_grad():
        expected = trunk(images)
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            features = (trunk.bfloat16() if how == "copy" else trunk)(images).float()
    torch.testing.assert_close(features, expected, atol=0.1 * expected.abs().max().item(), rtol=0)


def test_layers_of_an_mlp_are_normalised_before_they_are_activated():
    mlp = MLP(6, 5, activation=torch.nn.Tanh, normalization="layer")
    assert mlp.build((3,)) == 5
    x = torch.randn(4, 3)
    expected = x.double()
    for i in (0, 3):
        expected = functional.linear(expected, mlp.layers[i].weight.double())
        expected = expected - expected.mean(1, keepdim=True)
        expected = (expected / (expected.square().mean(1, keepdim=True) + 1e-5).sqrt()).tanh()
    torch.testing.assert_close(mlp(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(50, 3), (6, 3, 4, 5)])
def test_batch_norm_learns_by_the_batch_and_acts_by_what_runs_along(shape):
    norm = BatchNorm(3, momentum=0.25)
    x = 4 + 3 * torch.randn(shape)
    columns = x.double().movedim(1, 0).flatten(1)
    mean, variance = columns.mean(1), columns.var(1, correction=0)
    ends = (1, 3, *[1] * (len(shape) - 2))

    learned = norm(x)
    expected = (x.double() - mean.view(ends)) / (variance.view(ends) + 1e-5).sqrt()
    torch.testing.assert_close(learned.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.mean.double(), 0.25 * mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.variance.double(), 0.75 + 0.25 * columns.var(1), atol=1e-5, rtol=1e-4)

    before = [buffer.clone() for buffer in norm.buffers()]
    with torch.inference_mode():
        acted = norm(x)
    expected = (x - norm.mean.view(ends)) / (norm.variance.view(ends) + 1e-5).sqrt()
    torch.testing.assert_close(acted, expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(before, norm.buffers(), strict=True))


def test_batch_norm_of_a_single_number_is_no_error():
    assert BatchNorm(2)(torch.ones(1, 2)).isfinite().all()


def test_statistics_travel_with_the_weights():
    """One agent acts and learns, as in `local`; another gets its weights and says the same."""
    parts = {"trunk": MLP(16, normalization="batch")}
    agent, other = agent_of(**parts), agent_of(trunk=MLP(16, normalization="batch"))
    learner = VTrace(agent, learning_rate=1e-2, optimizer="adam")
    untouched = agent.get_weights()
    batch = play(agent, num_envs=8, steps=20)
    assert all(np.array_equal(untouched[name], array) for name, array in agent.get_weights().items()), "acting"
    metrics = learner.train_step(batch)
    assert math.isfinite(metrics["loss/total"])
    moved = [name for name, array in agent.get_weights().items() if not np.array_equal(untouched[name], array)]
    assert {"trunks.0.module.layers.1.mean", "trunks.0.module.layers.1.variance"} <= set(moved)
    other.set_weights(learner.get_weights())
    observations, first = np.array([0, 1, 2, 3]), np.zeros(4, bool)
    mine, theirs = (each.act(observations, (), first, greedy=True)[2] for each in (agent, other))
    np.testing.assert_array_equal(mine["behaviour_logits"], theirs["behaviour_logits"])


def test_batch_normalised_networks_learn():
    agent = agent_of(trunk=MLP(16, normalization="batch"))
    learner = VTrace(agent, learning_rate=5e-3, optimizer="adam")
    for _ in range(60):
        learner.train_step(play(agent, num_envs=16, steps=20))
    batch = play(agent, num_envs=16, steps=60)
    assert batch.rewards.sum() / batch.terminated.sum() > 0.9


def test_several_images_and_numbers_become_one_embedding():
    space = spaces.Dict(
        far=spaces.Box(0, 255, (SIDE, SIDE), np.uint8),
        near=spaces.Box(0, 255, (2, SIDE, SIDE), np.uint8),
        speed=spaces.Box(-1, 1, (3,)),
    )
    trunks = {"far": FourConv(4), "near": ImpalaResNet(8, channels=(4,)), "speed": MLP(5)}
    agent = TorchAgent(ModularNetwork(space, spaces.Discrete(3), trunk=trunks))
    assert agent.network.heads[0].linear.in_features == 4 * 2 * 2 + 8 + 5  # 36, 16, 8, 4, 2
    observations = {"far": np.zeros((6, SIDE, SIDE), np.uint8), "near": np.zeros((6, 2, SIDE, SIDE), np.uint8)}
    actions, _, _ = agent.act({**observations, "speed": np.zeros((6, 3), np.float32)}, (), np.zeros(6, bool))
    assert actions.shape == (6,)
