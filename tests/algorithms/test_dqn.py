"""DQN: targets against naive loops, the loss row by row, and that it learns; QAgent: who explores, and how much."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import LENGTH, OBSERVED, play
from tinyverse.agents.q_agent import QAgent
from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.algorithms import DQN, R2D2, losses, returns
from tinyverse.core.errors import SettingsError, SpecError
from tinyverse.experiment.experiment import session_spec
from tinyverse.networks import MLP, ModularNetwork, SmallConv, Window

torch.set_num_threads(1)

GAMMA = 0.9
ALIVE = np.zeros(1000, bool)


class Chainer(QAgent):
    """Gives what `chains.play` asks of all agents."""

    def act(self, observations, state, is_first, greedy=False):
        actions, state, _ = super().act(observations, state, is_first, greedy)
        return actions, state, {"behaviour_log_prob": np.zeros(len(is_first), np.float32)}


def agent_of(observation_space=OBSERVED, action_space=spaces.Discrete(2), kind=QAgent, parts=None, **settings):  # noqa: B008
    torch.manual_seed(0)
    agent = kind(ModularNetwork(observation_space, action_space, **(parts or {})), action_space, **settings)
    agent.seed(0)
    return agent


@pytest.fixture
def agent():
    agent = agent_of(kind=Chainer, parts={"trunk": MLP(16)}, epsilon=0.7, alpha=0.0)
    with torch.no_grad():
        for parameter in agent.network.parameters():
            parameter.normal_()
    return agent


@pytest.fixture
def batch(agent):
    return play(agent, num_envs=8, steps=10)


# -- targets ------------------------------------------------------------------------------------------------------------


def rows_of(seed, steps=15, num_envs=4, actions=3):
    """Random rows as NEXT_STEP gives them, with every kind of end, and Q of all of them."""
    random = np.random.default_rng(seed)
    terminated, truncated = random.random((2, steps, num_envs)) < 0.15
    valid, resetting = np.ones((steps, num_envs), bool), random.random(num_envs) < 0.2
    for t in range(steps):
        valid[t] = ~resetting
        terminated[t] &= valid[t]
        truncated[t] &= valid[t] & ~terminated[t]
        resetting = terminated[t] | truncated[t]
    rewards, q = random.normal(size=(steps, num_envs)) * 20, random.normal(size=(2, steps + 1, num_envs, actions)) * 5
    return rewards, terminated, truncated, valid, *q


def naive_target(rewards, terminated, truncated, online, target, t, game, n, h, inverse):
    """Reward by reward, to the end of the episode, of the slice, or of n."""
    total, factor = 0.0, 1.0
    for k in range(t, min(t + n, len(rewards))):
        total += factor * rewards[k, game]
        factor *= GAMMA
        if terminated[k, game]:
            return h(total)
        if truncated[k, game]:
            break
    last = k + 1
    best = max(range(online.shape[-1]), key=lambda action: online[last, game, action])
    return h(total + factor * inverse(target[last, game, best]))


def h(x, epsilon):
    return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + epsilon * x


def h_inverse(x, epsilon):
    return np.sign(x) * (((np.sqrt(1 + 4 * epsilon * (abs(x) + 1 + epsilon)) - 1) / (2 * epsilon)) ** 2 - 1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n", [1, 3, 5, 100])
@pytest.mark.parametrize("squash", [None, 1e-3, 0.1])
def test_targets_are_the_papers_sums(seed, n, squash):
    rewards, terminated, truncated, valid, online, target = rows_of(seed)
    there, back = (lambda x: x, lambda x: x) if squash is None else (
        lambda x: h(x, squash), lambda x: h_inverse(x, squash)
    )  # fmt: skip
    discounts, continues = GAMMA * ~terminated, ~(terminated | truncated)
    arrays = [torch.tensor(array, dtype=torch.float64) for array in (rewards, discounts, continues, online, target)]
    got = returns.double_q(*arrays, n, squash=squash)
    assert (terminated.any(), truncated.any()) == (True, True)
    for t, game in zip(*np.nonzero(valid), strict=True):
        wanted = naive_target(rewards, terminated, truncated, online, target, t, game, n, there, back)
        assert got[t, game].item() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 1.0])
def test_squashing_follows_its_formula_and_can_be_undone(epsilon):
    x = torch.cat([torch.zeros(1), torch.logspace(-6, 6, 200), -torch.logspace(-6, 6, 200)]).double()
    small = returns.squashed(x, epsilon)
    np.testing.assert_allclose(small, h(x.numpy(), epsilon), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(returns.unsquashed(small, epsilon), x, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(returns.unsquashed(x, epsilon), h_inverse(x.numpy(), epsilon), rtol=1e-8, atol=1e-9)
    twice = returns.unsquashed(returns.squashed(x.float(), epsilon), epsilon)
    np.testing.assert_allclose(twice, x, rtol=1e-5, atol=1e-6)  # float32, where 1 + 4ε… − 1 would lose digits


def test_shapes_of_q_are_checked():
    rows = [torch.zeros(3, 2)] * 3
    with pytest.raises(SpecError, match=r"\(4, 2\) and \(4, 2\), wanted \[T\+1, B, A\]"):
        returns.double_q(*rows, torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(SpecError, match="values"):
        returns.double_q(*rows, torch.zeros(3, 2, 5), torch.zeros(3, 2, 5))


def test_priorities_of_sequences():
    errors = torch.tensor([[1.0, -4.0, 9.0], [-3.0, 2.0, 9.0], [50.0, 0.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 1, 0]])
    got = losses.sequence_priorities(errors, mask, eta=0.9)
    assert got.tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 0.9 * 4 + 0.1 * 2, 0])


# -- learning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"n": 1, "double": False}, id="2015"), pytest.param({"n": 3}, id="ape-x", marks=pytest.mark.slow)],
)
def test_it_learns_to_walk_the_chain(settings):
    agent = agent_of(kind=Chainer, parts={"trunk": MLP(16)}, epsilon=0.9, alpha=1.0)
    learner = DQN(agent, learning_rate=5e-3, target_every=5, total_updates=250, **settings)
    for _ in range(250):
        learner.train_step(play(agent, 16, 20))
    agent.epsilon = 0.0
    after = play(agent, 16, 20)
    assert after.rewards.sum() / after.valid.sum() > 0.9 / LENGTH
    outputs, _ = agent.network(torch.arange(LENGTH)[:, None], (), torch.zeros(LENGTH, 1).bool())
    q = agent.q_values(outputs)[:, 0]
    assert q[:, 0].tolist() == pytest.approx([0, 0, 0], abs=0.15)
    if settings["n"] == 1:  # targets of more steps hold what exploration cost
        assert q[:, 1].tolist() == pytest.approx([0.99**2, 0.99, 1], abs=0.15)


def test_the_loss_row_by_row(agent, batch):
    batch.weights, batch.rewards = torch.rand(8), batch.rewards * 3
    learner = DQN(agent, discount=GAMMA, n=3, reward_clip=2.0, eta=0.7)
    with torch.no_grad():
        for parameter in learner.target.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    loss, metrics = learner.loss(batch)
    online, target = (
        agent.q_values(network(batch.observations, (), batch.is_first)[0]).detach().double().numpy()
        for network in (agent.network, learner.target)
    )
    flags = batch.terminated.numpy(), batch.truncated.numpy()
    rewards, total, count, errors = batch.rewards.clamp(max=2).numpy(), 0.0, 0, [[] for _ in range(8)]
    for t, game in batch.valid.nonzero().tolist():
        y = naive_target(rewards, *flags, online, target, t, game, 3, lambda x: x, lambda x: x)
        error = abs(y - online[t, game, batch.actions[t, game]])
        total += batch.weights[game].item() * (0.5 * error**2 if error < 1 else error - 0.5)
        count += 1
        errors[game].append(error)
    assert 0 < count < 80
    assert loss.item() == pytest.approx(total / count, rel=1e-4)
    assert metrics["value/error"].item() == pytest.approx(np.mean(sum(errors, [])), rel=1e-4)
    wanted = [0.7 * max(column) + 0.3 * np.mean(column) for column in errors]
    assert metrics["priorities"].tolist() == pytest.approx(wanted, rel=1e-4)


def test_reset_rows_teach_nothing(agent, batch):
    learner, gradients = DQN(agent), []
    for action in (0, 1):
        batch.actions = torch.where(batch.valid, batch.actions, action)
        agent.network.zero_grad()
        learner.loss(batch)[0].backward()
        gradients.append([parameter.grad.clone() for parameter in agent.network.parameters()])
    assert not batch.valid.all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_target_network_follows_only_now_and_then(agent, batch):
    learner, same = DQN(agent, target_every=3), []
    for _ in range(7):
        before = copy.deepcopy(agent.network.state_dict())
        learner.train_step(batch)
        same.append(all(torch.equal(tensor, before[name]) for name, tensor in learner.target.state_dict().items()))
    assert same == [True, False, False, True, False, False, True]
    assert not any(parameter.requires_grad for parameter in learner.target.parameters())


def test_learning_goes_on_where_it_stopped(agent, batch):
    one = DQN(agent, target_every=4)
    for _ in range(6):
        one.train_step(batch)
    state = copy.deepcopy(one.state_dict())
    other = DQN(agent_of(kind=Chainer, parts={"trunk": MLP(16)}), target_every=4)
    other.load_state_dict(state)
    for _ in range(6):
        wanted, got = one.train_step(batch)["loss/total"], other.train_step(batch)["loss/total"]
        assert torch.equal(wanted, got)


def test_settings_change_the_update(agent, batch):
    batch.rewards *= 3
    found = {}
    for name, setting in {
        "discount": 0.5, "n": 1, "double": False, "reward_clip": 1.0, "squash": 1e-3, "burn_in": 0,
    }.items():  # fmt: skip
        learner = DQN(agent, **{name: setting})
        with torch.no_grad():
            for parameter in learner.target.parameters():
                parameter.mul_(-1)
        found[name] = learner.loss(batch)[0].item()
    assert len(set(found.values())) == len(found)
    assert DQN(agent, total_updates=10).optimizer.total_updates == 10


def test_actions_that_do_not_begin_at_zero():
    """Discrete(2, start=5): the same environment by other names teaches the same."""
    shifted, plain = (
        agent_of(action_space=space, parts={"trunk": MLP(16)}, epsilon=1.0)
        for space in (spaces.Discrete(2, start=5), spaces.Discrete(2))
    )
    actions, _, _ = shifted.act(np.zeros(200, np.int64), shifted.initial_state(200), ALIVE[:200])
    assert set(actions) == {5, 6}
    batch = play(agent_of(kind=Chainer), 4, 10)
    loss = DQN(plain).loss(batch)[0].item()
    batch.actions = batch.actions + 5
    assert DQN(shifted).loss(batch)[0].item() == loss


def test_three_rows_of_burn_in_fill_a_window_of_four():
    """A slice from the middle, with nothing remembered, is valued as in the whole session; with fewer rows it is not."""
    agent = agent_of(spaces.Box(0, 255, (36, 36), np.uint8), parts={"trunk": Window(4, SmallConv(8))}, kind=Chainer)
    generator = torch.Generator().manual_seed(0)
    whole = play(agent_of(kind=Chainer), 2, 12)
    whole.observations = torch.randint(256, (13, 2, 36, 36), generator=generator).byte()
    whole.initial_state = agent.state_arrays(agent.initial_state(2))
    whole.initial_state = {name: torch.from_numpy(leaf) for name, leaf in whole.initial_state.items()}
    whole.valid[:] = True
    learner = DQN(agent)
    wanted = learner._q_of_rows(agent.network, whole)[6:]
    for burn_in, equal in ((3, True), (2, False)):
        start = 6 - burn_in
        cut = dataclasses.replace(
            whole, observations=whole.observations[start:], valid=whole.valid[start:], burn_in=burn_in
        )
        assert torch.allclose(learner._q_of_rows(agent.network, cut), wanted, atol=1e-5) is equal


# -- QAgent -------------------------------------------------------------------------------------------------------------


def test_dueling_values_are_those_of_the_paper(agent):
    outputs, _ = agent.network(torch.arange(3)[:, None], (), torch.zeros(3, 1).bool())
    advantages, values = outputs.policy[0][:, 0].tolist(), outputs.values[:, 0].tolist()
    wanted = [[v + x - np.mean(a) for x in a] for v, a in zip(values, advantages, strict=True)]
    np.testing.assert_allclose(agent.q_values(outputs)[:, 0].detach(), wanted, rtol=1e-5)
    agent.dueling = False
    np.testing.assert_array_equal(agent.q_values(outputs)[:, 0].detach(), advantages)


def test_greedy_takes_the_best_and_else_epsilon_is_the_chance_of_any():
    agent = agent_of(action_space=spaces.Discrete(4), epsilon=0.5, alpha=0.0)
    observations, state = np.zeros(1000, np.int64), agent.initial_state(1000)
    best = set(agent.act(observations, state, ALIVE, greedy=True)[0])
    assert len(best) == 1
    actions, _, extras = agent.act(observations, state, ALIVE)
    assert np.mean(actions == best.pop()) == pytest.approx(0.5 + 0.5 / 4, abs=0.06) and extras == {}
    assert actions.dtype == np.int64 and set(actions) == {0, 1, 2, 3}
    agent.greedy_epsilon = 1.0
    assert len(set(agent.act(observations, state, ALIVE, greedy=True)[0])) == 4


@pytest.mark.parametrize("num_envs", [[1000], [4, 60], [1] * 64], ids=["one player", "two", "64 of one environment"])
def test_however_games_are_shared_among_players_they_cover_the_range(num_envs):
    """As Ape-X: log ε is spread evenly between log 0.4 and 8 log 0.4."""
    epsilons = []
    for seed, n in enumerate(num_envs):
        agent = agent_of(epsilon=0.4, alpha=7.0)
        agent.seed(seed)
        epsilons += agent.initial_state(n)[1].tolist()
    places = np.sort((np.log(epsilons) / np.log(0.4) - 1) / 7)
    even = (np.arange(len(places)) + 0.5) / len(places)
    assert places[0] >= 0 and places[-1] <= 1
    assert np.abs(places - even).max() < 1.95 / np.sqrt(len(places))  # Kolmogorov–Smirnov, p = 0.001
    if len(num_envs) == 1:
        assert np.abs(places - even).max() < 1e-3


def test_a_games_epsilon_outlives_weights_and_episodes_and_stays_out_of_sessions():
    agent, spare = agent_of(), agent_of()
    spare.seed(5)
    state = agent.initial_state(3)
    _, after, _ = spare.act(np.zeros(3, np.int64), state, np.ones(3, bool))
    assert torch.equal(after[1], state[1])
    spec = session_spec(OBSERVED, spaces.Discrete(2), agent, length=4)
    assert not any(name.startswith(("initial_memory", "extras")) for name in spec.fields)


def test_the_seed_decides():
    def played(seed):
        agent = agent_of()
        agent.seed(seed)
        state = agent.initial_state(30)
        return [agent.act(np.zeros(30, np.int64), state, ALIVE[:30])[0].tolist() for _ in range(5)]

    assert played(1) == played(1) != played(2)


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2]), spaces.Tuple([spaces.Discrete(2)])]
)
def test_other_action_spaces_are_refused_in_one_sentence(space):
    with pytest.raises(SettingsError, match="wants a Discrete action space; this one is"):
        agent_of(action_space=space)


@pytest.mark.parametrize("algorithm", [DQN, R2D2])
def test_an_agent_without_values_is_refused(algorithm):
    with pytest.raises(SettingsError, match=rf"{algorithm.__name__} got a TorchAgent, wanted QAgent"):
        algorithm(TorchAgent(agent_of().network))


def test_masks_are_refused():
    seen = spaces.Dict({"place": OBSERVED, "available_actions": spaces.MultiBinary(2)})
    with pytest.raises(SettingsError, match="knows no masks"):
        agent_of(observation_space=seen)
