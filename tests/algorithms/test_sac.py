"""SAC: its three losses and the squashed Gaussian against float64 loops, where gradients flow, and that it learns."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms.sac import SAC, follow
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.networks import LSTM, MLP, ModularNetwork, NatureConv
from tinyverse.networks.normalization import Normalized
from tinyverse.networks.squashed import SquashedActor, SquashedGaussian, log_slope_of_tanh, unit_actions

torch.set_num_threads(1)
STEPS, GAMES, SEEN = 7, 5, spaces.Box(-1, 1, (3,))
TORQUES = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))


def agent_of(observed=SEEN, actions=TORQUES, **parts):
    torch.manual_seed(0)
    agent = TorchAgent(SquashedActor(observed, actions, **{"body": MLP(16), **parts}))
    agent.seed(0)
    return agent


def random_batch(seed=0):
    random = np.random.default_rng(seed)
    terminated, truncated = np.zeros((STEPS, GAMES), bool), np.zeros((STEPS, GAMES), bool)
    valid = np.ones((STEPS, GAMES), bool)
    for t in range(STEPS):
        valid[t] = ~(terminated[t - 1] | truncated[t - 1]) if t else True
        dice = random.random(GAMES)
        terminated[t], truncated[t] = valid[t] & (dice < 0.2), valid[t] & (dice > 0.8)
    draw = lambda *shape: torch.from_numpy(random.normal(size=shape).astype(np.float32))  # noqa: E731
    actions = [random.uniform(TORQUES.low, TORQUES.high).astype(np.float32) for _ in range(STEPS * GAMES)]
    return Batch(
        observations=draw(STEPS + 1, GAMES, 3), actions=torch.from_numpy(np.stack(actions)).reshape(STEPS, GAMES, 2),
        rewards=draw(STEPS, GAMES), terminated=torch.from_numpy(terminated), truncated=torch.from_numpy(truncated),
        valid=torch.from_numpy(valid), initial_state=(), extras={}, weights=draw(GAMES).abs(), lag=torch.zeros(GAMES),
        slots=torch.arange(GAMES),
    )  # fmt: skip


# -- the distribution ---------------------------------------------------------------------------------------------


def gaussian(seed=0, rows=6, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    mean, log_std = (torch.randn(rows, 2, generator=random, dtype=torch.float64) * scale for _ in range(2))
    return SquashedGaussian(mean, log_std, torch.tensor([0.0, 0.5]).double(), torch.tensor([2.0, 0.5]).double(), (2,))


def test_log_prob_is_the_density_of_a_stretched_tanh():
    """Change of variables, factor by factor: p(a) = N(u) / |da/du|."""
    policy = gaussian()
    actions = policy.sample(torch.Generator().manual_seed(1))
    for row, found in enumerate(policy.log_prob(actions).tolist()):
        density = 1.0
        for d, (centre, reach) in enumerate([(0.0, 2.0), (0.5, 0.5)]):
            u = math.atanh((actions[row, d].item() - centre) / reach)
            mean, std = policy.mean[row, d].item(), math.exp(policy.log_std[row, d].item())
            normal = math.exp(-((u - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
            density *= normal / (reach * (1 - math.tanh(u) ** 2))
        assert found == pytest.approx(math.log(density), abs=1e-6)


def test_a_density_integrates_to_one():
    policy = SquashedGaussian(
        *(torch.tensor([[x]]).double() for x in (0.4, -0.3)), torch.zeros(1), torch.full((1,), 2.0), (1,)
    )
    grid = torch.linspace(-2, 2, 20_001, dtype=torch.float64)[1:-1, None]
    wide = SquashedGaussian(
        policy.mean.expand(len(grid), 1),
        policy.log_std.expand(len(grid), 1),
        policy.centre,
        policy.reach.double(),
        (1,),
    )
    assert wide.log_prob(grid).exp().sum().item() * 4 / 20_000 == pytest.approx(1, abs=1e-3)


def test_samples_carry_their_own_log_prob():
    policy = gaussian()
    unit, log_probs = policy.rsample(torch.Generator().manual_seed(3))
    actions = policy.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(actions, policy.centre + policy.reach * unit)
    torch.testing.assert_close(policy.log_prob(actions), log_probs - policy.reach.log().sum())


def test_the_slope_of_tanh_is_exact_where_tanh_has_become_one():
    raw = torch.tensor([-40.0, -12.0, -0.3, 0.0, 2.0, 12.0, 40.0])
    naive = [math.log(4) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u))) for u in raw.tolist()]
    torch.testing.assert_close(log_slope_of_tanh(raw), torch.tensor(naive))
    assert (1 - raw.tanh() ** 2).log().isinf().any()  # what it is instead of


def test_actions_stay_within_bounds_and_on_them_nothing_is_infinite():
    policy = gaussian(scale=5.0, rows=2000)
    actions = policy.sample(torch.Generator().manual_seed(0)).float()
    assert (actions >= torch.tensor(TORQUES.low)).all() and (actions <= torch.tensor(TORQUES.high)).all()
    assert actions[:, 0].max() > 1.999  # some are at the bounds
    for edge in (TORQUES.low, TORQUES.high):
        assert policy.log_prob(torch.tensor(edge).expand(2000, 2)).isfinite().all()


def test_entropy_is_estimated_without_bias():
    torch.manual_seed(0)
    rows = 40_000
    spread = torch.zeros(rows, 1)
    policy = SquashedGaussian(spread, spread - 1, torch.zeros(1), torch.ones(1), (1,))
    grid = torch.linspace(-1, 1, 20_001)[1:-1, None]
    log_probs = SquashedGaussian(spread[:19_999], spread[:19_999] - 1, torch.zeros(1), torch.ones(1), (1,)).log_prob(
        grid
    )
    exact = -(log_probs.exp() * log_probs).sum().item() * 2 / 20_000
    assert policy.entropy().mean().item() == pytest.approx(exact, abs=0.02)


def test_the_greedy_action_is_the_middle():
    policy = gaussian(rows=1)
    below = (
        policy.mode() > torch.stack([policy.sample(torch.Generator().manual_seed(s)) for s in range(2000)])
    ).double()
    torch.testing.assert_close(below.mean(0), torch.full((1, 2), 0.5).double(), atol=0.04, rtol=0)


def test_reparameterised_samples_carry_the_gradient_of_the_expectation():
    """d/dθ of E[f(tanh(mean + std ε))] by finite differences over the same noise."""

    def expectation(mean, log_std):
        policy = SquashedGaussian(mean.expand(500, 1), log_std.expand(500, 1), torch.zeros(1), torch.ones(1), (1,))
        unit, log_probs = policy.rsample(torch.Generator().manual_seed(0))
        return ((unit - 0.3).square().sum(-1) + 0.1 * log_probs).mean()

    parameters = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.2, -0.5)]
    assert torch.autograd.gradcheck(expectation, parameters)


# -- the losses ---------------------------------------------------------------------------------------------------


def exact(learner):
    """The actor and the critics as plain float64 functions of one row."""

    def layers(module, prefix):
        return {name.removeprefix(prefix): t.double().numpy() for name, t in module.state_dict().items()}

    def dense(state, name, x):
        return state[f"{name}.weight"] @ x + state[f"{name}.bias"]

    actor = layers(learner.agent.network, "")

    def policy(o):
        hidden = np.maximum(dense(actor, "body.module.layers.0", o), 0)
        return np.split(dense(actor, "heads.0.linear", hidden), 2)

    def critic_of(module):
        state = layers(module, "network.")

        def critic(o, x):
            hidden = np.maximum(dense(state, "body.module.layers.0", np.concatenate([x, o])), 0)
            return dense(state, "value.linear", hidden)[0]

        return critic

    return policy, [critic_of(c) for c in learner.critics], [critic_of(c) for c in learner.targets]


def drawn(policy, o, noise):
    """(unit action, log density) of a row, by the definitions."""
    mean, log_std = policy(o)
    raw = mean + np.exp(log_std) * noise
    density = sum(-0.5 * e**2 - s - 0.5 * math.log(2 * math.pi) for e, s in zip(noise, log_std))
    return np.tanh(raw), density - sum(math.log(1 - math.tanh(u) ** 2) for u in raw)


@pytest.fixture
def learner():
    learner = SAC(agent_of(), discount=0.9, temperature=0.3, reward_scale=2.0)
    with torch.no_grad():
        for module in (learner.agent.network, learner.critics, learner.targets):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return learner


@pytest.mark.parametrize("seed", range(3))
def test_the_losses_row_by_row(learner, seed):
    batch = random_batch(seed)
    rows, shape = learner.rows(batch), (STEPS, GAMES, 2)
    torch.manual_seed(seed)
    critic_loss, _ = learner.critic_loss(rows)
    actor_loss, entropy = learner.actor_loss(rows)
    torch.manual_seed(seed)
    later, now = (torch.empty(shape).normal_().double().numpy() for _ in range(2))
    policy, critics, targets = exact(learner)
    seen, count, expected = batch.observations.double().numpy(), 0, np.zeros(3)
    for t in range(STEPS):
        for b in range(GAMES):
            if not batch.valid[t, b]:
                continue
            x, log_prob = drawn(policy, seen[t + 1, b], later[t, b])
            soft = min(q(seen[t + 1, b], x) for q in targets) - 0.3 * log_prob
            y = 2.0 * batch.rewards[t, b].item() + (0.0 if batch.terminated[t, b] else 0.9 * soft)
            a = (batch.actions[t, b].double().numpy() - [0, 0.5]) / [2, 0.5]
            critic = sum(0.5 * (q(seen[t, b], a) - y) ** 2 for q in critics)
            x, log_prob = drawn(policy, seen[t, b], now[t, b])
            actor = 0.3 * log_prob - min(q(seen[t, b], x) for q in critics)
            weight = batch.weights[b].item()
            expected += np.array([weight * critic, weight * actor, -log_prob])  # the entropy is of what was played
            count += 1
    assert 0 < count < STEPS * GAMES and batch.truncated.any()
    found = [critic_loss.item(), actor_loss.item(), entropy.item()]
    np.testing.assert_allclose(found, expected / count, rtol=2e-6, atol=1e-6)  # the networks are float32
    temperature_loss = learner.temperature_loss(entropy, rows)
    assert temperature_loss.item() == pytest.approx(0.3 * (entropy.item() + 2), rel=1e-5)


def test_reset_rows_teach_nothing(learner):
    found = []
    for poison in (0.0, 1e3):
        batch = random_batch()
        batch.actions[~batch.valid] = poison
        batch.rewards[~batch.valid] = poison
        torch.manual_seed(0)
        found.append(learner.critic_loss(learner.rows(batch))[0].item())
    assert found[0] == found[1]


def test_a_time_limit_is_no_end_and_a_death_is(learner):
    batch = random_batch()
    t, b = batch.truncated.nonzero()[0].tolist()
    torch.manual_seed(0)
    beyond = learner.soft_targets(learner.rows(batch))[t, b]
    batch.terminated[t, b] = True
    assert learner.soft_targets(learner.rows(batch))[t, b].item() == pytest.approx(2 * batch.rewards[t, b].item())
    assert beyond.item() != pytest.approx(2 * batch.rewards[t, b].item())


def test_each_loss_moves_its_own_parameters_only(learner):
    modules = {"actor": learner.agent.network, "critics": learner.critics, "targets": learner.targets}

    def reached(loss):
        for module in (*modules.values(),):
            module.zero_grad()
        learner.log_temperature.grad = None
        loss.backward()
        found = {name for name, module in modules.items() if any(p.grad is not None for p in module.parameters())}
        return found | ({"temperature"} if learner.log_temperature.grad is not None else set())

    rows = learner.rows(random_batch())
    assert reached(learner.critic_loss(rows)[0]) == {"critics"}
    learner.critics.requires_grad_(False)
    loss, entropy = learner.actor_loss(rows)
    assert reached(loss) == {"actor"}
    assert reached(learner.temperature_loss(entropy, rows)) == {"temperature"}


def test_the_temperature_moves_towards_the_wanted_entropy(learner):
    for entropy, sign in ((5.0, -1), (-9.0, 1)):  # wanted: −2
        before = learner.temperature
        loss = learner.temperature_loss(torch.tensor(entropy), learner.rows(random_batch()))
        learner.optimizers["temperature"].step(loss)
        assert torch.sign(learner.temperature - before) == sign
    assert SAC(agent_of(), target_entropy=-0.5).target_entropy == -0.5


def test_a_batch_without_rows_leaves_the_temperature(learner):
    batch = random_batch()
    batch.valid[:] = False
    before = learner.temperature
    learner.train_step(batch)
    assert learner.temperature == before


def test_a_train_step_moves_everything_and_targets_by_polyak(learner):
    before = {
        name: copy.deepcopy(module) for name, module in [("critics", learner.critics), ("targets", learner.targets)]
    }
    metrics = learner.train_step(random_batch())
    moved = zip(before["targets"].parameters(), learner.targets.parameters(), learner.critics.parameters(), strict=True)
    for old, new, critic in moved:
        torch.testing.assert_close(new, old + 0.005 * (critic - old))
    pairs = zip(before["critics"].parameters(), learner.critics.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs if old.ndim > 1)
    assert all(parameter.requires_grad for parameter in learner.critics.parameters())
    assert {"loss/critics", "loss/actor", "policy/entropy", "policy/temperature", "value/mean"} <= set(metrics)
    assert all(metric.ndim == 0 and metric.isfinite() and not metric.requires_grad for metric in metrics.values())
    fixed = SAC(agent_of(), temperature=0.2, learn_temperature=False)
    assert fixed.train_step(random_batch())["policy/temperature"].item() == pytest.approx(0.2)


def test_buffers_of_targets_are_copied():
    source, target = Normalized(MLP(4)), Normalized(MLP(4))
    source.build((2,)), target.build((2,))
    source.moments.update(torch.randn(10, 2) + 5)
    follow(target, source, 0.1)
    assert torch.equal(target.moments.mean, source.moments.mean)


# -- around them --------------------------------------------------------------------------------------------------


def test_players_get_the_actor_and_checkpoints_everything(learner):
    batch = random_batch()
    learner.train_step(batch)
    assert set(learner.get_weights()) == set(learner.agent.network.state_dict())
    other = SAC(agent_of(), discount=0.9, reward_scale=2.0)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, other):
        torch.manual_seed(5)
        one.train_step(batch)
    states = [one.state_dict() for one in (learner, other)]
    for part in ("actor", "critics", "targets"):
        assert all(torch.equal(states[0][part][name], states[1][part][name]) for name in states[0][part])
    assert torch.equal(states[0]["log_temperature"], states[1]["log_temperature"])
    assert {name: o.updates for name, o in other.optimizers.items()} == {"actor": 2, "critics": 2, "temperature": 2}


def test_critics_are_twins_but_not_the_same():
    learner = SAC(agent_of(trunk=Normalized()))
    one, other = learner.critics
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.ndim > 1)
    assert all(
        torch.equal(a, b) for a, b in zip(learner.critics.parameters(), learner.targets.parameters(), strict=True)
    )
    assert not any(parameter.requires_grad for parameter in learner.targets.parameters())


@pytest.mark.parametrize(
    ("observed", "parts"),
    [
        (spaces.Box(0, 255, (36, 36), np.uint8), {"trunk": NatureConv(8)}),
        (spaces.Dict(image=spaces.Box(0, 255, (36, 36), np.uint8), speed=spaces.Box(-1, 1, (2,))), {"trunk": {"image": NatureConv(8)}}),
        (spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]), {}),
    ],
    ids=["image", "dict", "tuple"],
)  # fmt: skip
def test_any_tree_of_observations(observed, parts):
    actor = SquashedActor(observed, TORQUES, body=MLP(8), **parts)
    leaf = lambda space: torch.from_numpy(np.stack([space.sample() for _ in range(6)])).unflatten(0, (3, 2))  # noqa: E731
    rows = (
        {key: leaf(space) for key, space in observed.spaces.items()} if isinstance(observed, spaces.Dict)
        else tuple(leaf(space) for space in observed.spaces) if isinstance(observed, spaces.Tuple) else leaf(observed)
    )  # fmt: skip
    policy = actor.distribution(actor(rows, (), torch.zeros(3, 2).bool())[0].policy)
    assert policy.sample().shape == (3, 2, 2)
    assert actor.critic()(rows, policy.rsample()[0]).shape == (3, 2)


def test_actions_of_any_shape_are_brought_to_units():
    shape = (2, 2)
    low, high = np.array([[0, -1], [-3, 5]], np.float32), np.array([[1, 1], [3, 6]], np.float32)
    actor = SquashedActor(SEEN, spaces.Box(low, high), body=MLP(8))
    edges = torch.from_numpy(np.stack([low, high, (low + high) / 2, high + 9]))
    torch.testing.assert_close(actor.unit(edges), torch.tensor([-1.0, 1, 0, 1])[:, None].expand(4, 4))
    action, _, extras = TorchAgent(actor).act(np.zeros((1, 3), np.float32), (), np.ones(1, bool))
    assert action.shape == (1, *shape) and (action >= low).all() and (action <= high).all()
    assert np.isfinite(extras["behaviour_log_prob"]).all()
    assert unit_actions(torch.tensor([3.0]), torch.zeros(1), torch.full((1,), 6.0), ()).tolist() == [[0.5]]


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0, 255, (2,), np.uint8), spaces.Box(1, 1, (1,)),
     spaces.Box(-1, np.inf, (2,)), spaces.Tuple([TORQUES, TORQUES])],
)  # fmt: skip
def test_what_is_no_bounded_box_is_refused(space):
    with pytest.raises(SettingsError, match="Box of floats with finite bounds"):
        SquashedActor(SEEN, space)


def test_misfits_are_refused():
    with pytest.raises(SettingsError, match="ModularNetwork, wanted TorchAgent.SquashedActor"):
        SAC(TorchAgent(ModularNetwork(SEEN, TORQUES)))
    with pytest.raises(SettingsError, match="remembers"):
        SquashedActor(SEEN, TORQUES, body=LSTM(8))
    with pytest.raises(SettingsError, match="polyak=0"):
        SAC(agent_of(), polyak=0)
    with pytest.raises(SettingsError, match="One trunk for 2 observations"):
        SquashedActor(spaces.Tuple([SEEN, SEEN]), TORQUES, trunk=MLP(8))


def test_it_learns_where_to_push():
    """One step, reward −(a − o)²: the best action is the observation, and the value there 0."""
    torch.manual_seed(0)
    space = spaces.Box(-2, 2, (1,))
    agent = agent_of(spaces.Box(-1, 1, (1,)), space, body=MLP(32))
    learner = SAC(agent, learning_rate=3e-3, temperature=0.1)
    steps, num_envs = 1, 64
    for _ in range(400):
        seen = torch.rand(steps + 1, num_envs, 1) * 2 - 1
        actions, _, _ = agent.act(seen[0].numpy(), (), np.ones(num_envs, bool))
        actions = torch.from_numpy(actions)[None]
        over = torch.ones(steps, num_envs, dtype=torch.bool)
        learner.train_step(Batch(
            observations=seen, actions=actions, rewards=-(actions - seen[:1]).square()[..., 0], terminated=over,
            truncated=~over, valid=over, initial_state=(), extras={}, weights=torch.ones(num_envs), lag=torch.zeros(num_envs),
            slots=torch.arange(num_envs),
        ))  # fmt: skip
    seen = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    greedy, _, _ = agent.act(seen, (), np.ones(7, bool), greedy=True)
    np.testing.assert_allclose(greedy, seen, atol=0.2)
