"""Normalizers: the statistics of everything at once, whatever the batches; what moves them and what does not."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.chains import LENGTH, agent_of, play
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import A2C, PPO, VTrace
from tinyverse.core.errors import SpecError
from tinyverse.networks import LSTM, MLP, ModularNetwork, Window
from tinyverse.networks.normalization import Normalized, RewardNormalizer, RunningMeanStd

torch.set_num_threads(1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 2**31), st.sampled_from([1.0, 1e6, -1e8]))
def test_batches_add_up_to_the_whole(sizes, seed, offset):
    random = np.random.default_rng(seed)
    batches = [random.normal(offset, 2.0, (size, 3)) for size in sizes]
    masks = [random.random(size) < 0.7 for size in sizes]
    moments = RunningMeanStd((3,))
    for batch, mask in zip(batches, masks, strict=True):
        moments.update(torch.from_numpy(batch), torch.from_numpy(mask))
    seen = np.concatenate(batches)[np.concatenate(masks)]
    assert moments.count.item() == len(seen)
    np.testing.assert_allclose(moments.mean, seen.mean(0) if len(seen) else np.zeros(3), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, seen.var(0) if len(seen) else np.ones(3), rtol=1e-6, atol=1e-12)


def test_without_a_mask_every_row_counts_and_shapes_are_checked():
    moments = RunningMeanStd()
    moments.update(torch.tensor([1.0, 3.0]))
    assert (moments.mean.item(), moments.variance.item()) == (2.0, 1.0)
    assert moments.deviation.item() == pytest.approx(1.0) and moments.deviation.dtype == torch.float32
    with pytest.raises(SpecError, match=r"rows of shape \(2,\), wanted \(\)"):
        moments.update(torch.zeros(3, 2))


def trunk(**options):
    module = Normalized(**options)
    assert module.build((2,)) == (2 if "trunk" not in options else 8)
    return module


def test_what_comes_out_has_mean_0_and_deviation_1():
    module, x = trunk(), torch.randn(500, 2) * torch.tensor([3.0, 100.0]) + torch.tensor([0.0, -1e4])
    assert torch.equal(module(x), x.clamp(-10, 10))  # nothing is known yet
    normal = module(x)
    torch.testing.assert_close(normal.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal.var(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert module(x + 1e9).max() == 10


def test_what_has_never_varied_is_left_as_large_as_it_is():
    module = trunk()
    module(torch.full((9, 2), 3.0))
    torch.testing.assert_close(module(torch.full((1, 2), 3.5)), torch.full((1, 2), 0.5))


def test_only_training_moves_the_statistics():
    module, x = trunk(), torch.randn(50, 2)
    with torch.no_grad():
        module(x)
    with torch.inference_mode():
        module(x)
    module.eval()(x)
    assert module.moments.count == 0
    module.train()(x)
    assert module.moments.count == 50


def network():
    torch.manual_seed(0)
    space = spaces.Box(-np.inf, np.inf, (2,))
    return ModularNetwork(space, spaces.Discrete(2), trunk=Window(2, Normalized(MLP(8))), body=LSTM(4))


def test_statistics_travel_with_weights_and_stay_exact_in_bfloat16():
    agent = TorchAgent(network())
    agent.network(1000 + torch.randn(5, 3, 2), agent.initial_state(3), torch.zeros(5, 3).bool())
    player = TorchAgent(network()).to(dtype=torch.bfloat16)
    player.set_weights(agent.get_weights())
    mine, theirs = (a.network.trunks[0].trunk.module.moments for a in (agent, player))
    assert mine.count == 15 and theirs.mean.dtype == torch.float64
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-6, atol=0)
    before = theirs.mean.clone()
    player.act(np.zeros((3, 2), np.float32), player.initial_state(3), np.ones(3, bool))
    assert torch.equal(theirs.mean, before)


def test_a_restored_learner_goes_on_with_them():
    learner, other = (A2C(TorchAgent(network()), return_scale=True) for _ in range(2))
    learner.agent.network(torch.randn(5, 3, 2), learner.agent.initial_state(3), torch.zeros(5, 3).bool())
    learner.return_scale(torch.randn(5, 3), torch.ones(5, 3), torch.ones(5, 3))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for name, tensor in learner.return_scale.state_dict().items():
        assert torch.equal(tensor, other.return_scale.state_dict()[name])
    assert other.agent.network.trunks[0].trunk.module.moments.count == 15


def test_the_behaviour_log_prob_is_found_again_in_training():
    """A batch is normalised by what was known when it was played."""
    agent = TorchAgent(network())
    rows = torch.zeros(1, 3).bool()
    for _ in range(3):
        seen = torch.randn(1, 3, 2) * 5 + 3
        actions, _, extras = agent.act(seen[0].numpy(), agent.initial_state(3), np.zeros(3, bool))
        outputs, _ = agent.network(seen, agent.initial_state(3), rows)
        again = agent.network.distribution(outputs.policy).log_prob(torch.from_numpy(actions)[None])
        torch.testing.assert_close(again[0].detach(), torch.from_numpy(extras["behaviour_log_prob"]))


def test_return_scale_is_the_deviation_of_discounted_sums():
    random, num_envs, steps, discount = np.random.default_rng(0), 4, 30, 0.9
    scale, sums = RewardNormalizer(discount), []
    for _ in range(3):
        ended = random.random((steps, num_envs)) < 0.2
        valid = np.ones((steps, num_envs), bool)
        rewards = random.normal(5, 3, (steps, num_envs))
        for b in range(num_envs):
            total = 0.0
            for t in range(steps):
                if t and valid[t - 1, b] and ended[t - 1, b]:
                    valid[t, b], ended[t, b], rewards[t, b], total = False, False, 0.0, 0.0
                    continue
                total = discount * total + rewards[t, b]
                sums.append(total)
                total = 0.0 if ended[t, b] else total
        tensors = [torch.from_numpy(array.astype(float)) for array in (rewards, ~ended, valid)]
        scaled = scale(*tensors)
        expected = (rewards / np.std(sums)).clip(-10, 10)
        assert not valid.all()
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_rewards_of_any_size_become_the_same():
    rewards, ones = torch.randn(20, 8), torch.ones(20, 8)
    one, other = RewardNormalizer(0.9)(rewards, ones, ones), RewardNormalizer(0.9)(rewards * 1e4, ones, ones)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    nothing = RewardNormalizer(0.9)(torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3, 2))
    assert torch.equal(nothing, torch.zeros(3, 2))


SCALING = [
    (A2C, {"learning_rate": 0.01, "optimizer": "adam"}),
    (PPO, {"learning_rate": 3e-3, "minibatches": 2}),
    (VTrace, {"learning_rate": 0.01, "optimizer": "adam", "reward_clip": None, "max_grad_norm": 1.0}),
]


@pytest.mark.parametrize(("algorithm", "options"), SCALING)
def test_a_learner_that_scales_does_the_same_whatever_the_game_counts_in(algorithm, options):
    """Thousandths or thousands: the update, to the digit, and without the option another one."""
    losses = []
    for size, scale in [(1e-2, True), (1e3, True), (1e3, False)]:
        agent = agent_of()
        learner, batch = algorithm(agent, return_scale=scale, **options), play(agent, 16, 20)
        batch.rewards = batch.rewards * size
        torch.manual_seed(0)
        metrics = learner.train_step(batch)
        losses.append(metrics["loss/total"].item())
        assert ("value/return_scale" in metrics) == scale
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[2] != pytest.approx(losses[1], rel=0.5)


@pytest.mark.parametrize(("algorithm", "options"), SCALING)
def test_a_learner_that_scales_learns_from_rewards_of_a_thousand(algorithm, options):
    agent = agent_of()
    learner = algorithm(agent, return_scale=True, entropy_cost=0.003, **options)
    for _ in range(80):
        batch = play(agent, 16, 20)
        batch.rewards = batch.rewards * 1000
        learner.train_step(batch)
    after = play(agent, 16, 20)
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH


@pytest.mark.parametrize("algorithm", [A2C, PPO, VTrace])
def test_rewards_are_clipped_then_scaled_by_what_returns_deviate_and_that_is_saved(algorithm):
    learner, batch = algorithm(agent_of(), return_scale=True, reward_clip=500.0), play(agent_of(), 16, 20)
    batch.rewards = batch.rewards * 1000
    scaled = learner.rewards(batch)
    deviation = learner.return_scale.moments.deviation
    torch.testing.assert_close(scaled, (batch.rewards.clamp(max=500) / deviation).clamp(-10, 10))
    assert 50 < deviation < 500
    other = algorithm(agent_of(), return_scale=True)
    other.load_state_dict(learner.state_dict())
    assert other.return_scale.moments.deviation == deviation
    assert "return_scale" not in algorithm(agent_of()).state_dict()


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_a_feature_of_any_size_is_normalised_but_rounding_is_not(scale, offset):
    moments, random = RunningMeanStd(), np.random.default_rng(0)
    moments.update(torch.from_numpy(scale * (offset + random.normal(size=5000))))
    assert float(moments.deviation) == pytest.approx(scale, rel=0.05)
    constant = RunningMeanStd()
    constant.update(torch.full((1000,), 0.1 * (1 + offset)) * (1 + 1e-7 * torch.randn(1000)))
    assert float(constant.deviation) == 1


def test_one_absurd_row_moves_the_statistics_little():
    moments, random = RunningMeanStd(), np.random.default_rng(0)
    moments.update(torch.from_numpy(random.normal(5.0, 2.0, 2000)))
    moments.update(torch.tensor([1e30]))
    for _ in range(10):
        moments.update(torch.from_numpy(random.normal(5.0, 2.0, 2000)))
    assert float(moments.mean) == pytest.approx(5.0, abs=0.1) and float(moments.deviation) == pytest.approx(
        2.0, rel=0.3
    )
