"""Bodies: their formulas written naively, one step at a time is all at once, and nothing crosses an episode's end."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.helpers.chains import Chains, agent_of, play_on
from tinyverse.algorithms.ppo import PPO
from tinyverse.algorithms.vtrace import VTrace
from tinyverse.core import nest
from tinyverse.core.errors import SettingsError
from tinyverse.networks import GRU, LSTM, MLP, Attention, ModularNetwork, Stack, Window

torch.set_num_threads(1)

T, B, D = 11, 4, 3
BODIES = {
    "lstm": lambda: LSTM(8),
    "normalised lstm": lambda: LSTM(8, layer_norm=True),
    "gru": lambda: GRU(8),
    "window": lambda: Window(4, MLP(8)),
    "attention": lambda: Attention(8, heads=2, memory=4),
    "attention beyond the slice": lambda: Attention(8, heads=1, memory=30),
    "attention on one row": lambda: Attention(8, heads=4, memory=1),
    "stack": lambda: Stack(MLP(5), LSTM(6), torch.nn.Linear(6, 7), GRU(8)),
    "stack of everything": lambda: Stack(Window(2), Attention(8, 2, 3), Stack(GRU(4), LSTM(8, layer_norm=True))),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(name):
    """A body whose biases and scales are away from their beginning, so that forgetting one shows."""
    body = BODIES[name]()
    assert body.build((D,), torch.float32) == 8
    with torch.no_grad():
        for parameter in body.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        if isinstance(body, Attention):
            body.nearness.normal_()
    return body


def used_state(body):
    """Not the state of a beginning."""
    with torch.no_grad():
        return body(torch.randn(6, B, D), body.initial_state(B, torch.device("cpu")), torch.rand(6, B) < 0.2)[1]


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_lstm_forgets_slowly_at_first(layer_norm):
    """A row that says nothing keeps σ(1) of the cell."""
    body = LSTM(8, layer_norm=layer_norm)
    body.build((D,), torch.float32)
    state = {"h": torch.zeros(B, 8), "c": torch.ones(B, 8)}
    with torch.no_grad():
        after = body(torch.zeros(1, B, D), state, torch.zeros(1, B, dtype=torch.bool))[1]["c"]
    torch.testing.assert_close(after, torch.full((B, 8), 1 / (1 + math.exp(-1))))


@pytest.mark.parametrize("p_first", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", BODIES)
def test_stepping_is_unrolling(name, p_first):
    body, x, is_first = built(name), torch.randn(T, B, D), torch.rand(T, B) < p_first
    state = used_state(body)
    with torch.no_grad():
        whole, last = body(x, state, is_first)
        rows = []
        for t in range(T):
            y, state = body(x[t : t + 1], state, is_first[t : t + 1])
            rows.append(y)
    assert whole.shape == (T, B, 8)
    torch.testing.assert_close(torch.cat(rows), whole, atol=2e-6, rtol=2e-6)
    steps, unrolled = nest.flatten(state, "m"), nest.flatten(last, "m")
    assert steps.keys() == unrolled.keys()
    for key, part in steps.items():
        assert part.dtype == unrolled[key].dtype
        torch.testing.assert_close(part, unrolled[key], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", BODIES)
def test_an_episode_knows_nothing_of_those_before(name):
    """Rows after a beginning are those of a slice that begins there with the state of a beginning; others are not."""
    body, x, is_first = built(name), torch.randn(T, B, D), torch.zeros(T, B, dtype=torch.bool)
    is_first[5] = True
    state = used_state(body)
    with torch.no_grad():
        whole, last = body(x, state, is_first)
        alone, end = body(x[5:], body.initial_state(B, torch.device("cpu")), torch.zeros_like(is_first[5:]))
        fresh, _ = body(x, body.initial_state(B, torch.device("cpu")), is_first)
    torch.testing.assert_close(whole[5:], alone, atol=2e-6, rtol=2e-6)
    nest.map(lambda a, b: torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-6), last, end)
    assert (whole[0] - fresh[0]).abs().amax(-1).min() > 1e-4, "in every environment, the state does matter"


@pytest.mark.parametrize("name", BODIES)
def test_gradients_stay_within_an_episode(name):
    body, x, is_first = built(name), torch.randn(T, B, D, requires_grad=True), torch.zeros(T, B, dtype=torch.bool)
    is_first[8, 1:] = True
    (body(x, used_state(body), is_first)[0][-1] * torch.randn(B, 8)).sum().backward()
    assert not x.grad[:8, 1:].any()
    assert x.grad[8:, 1:].any()
    if name != "attention on one row":
        assert x.grad[T - 2 :, 0].any(-1).all()


@pytest.mark.parametrize("name", BODIES)
def test_every_parameter_learns(name):
    body = built(name)
    y, _ = body(torch.randn(T, B, D), used_state(body), torch.rand(T, B) < 0.1)
    (y * torch.randn_like(y)).sum().backward()
    still = {
        name.rpartition(".")[2]
        for name, p in body.named_parameters()
        if not p.grad.isfinite().all() or not p.grad.any()
    }
    assert still == set()


@pytest.mark.parametrize("name", BODIES)
def test_memory_survives_the_wire_and_bfloat16(name):
    network = ModularNetwork(spaces.Box(-1, 1, (D,)), spaces.Discrete(2), body=BODIES[name]())
    x, is_first = torch.randn(T, B, D), torch.rand(T, B) < 0.2
    with torch.no_grad():
        state = network(x, network.initial_state(B), is_first)[1]
        restored = nest.unflatten(nest.flatten(state, "initial_state"), "initial_state")
        expected = network(x, state, is_first)[0].values
        assert torch.equal(network(x, restored, is_first)[0].values, expected)
        with torch.autocast("cpu", torch.bfloat16):
            values, after = network(x, state, is_first)
        assert torch.bfloat16 not in {leaf.dtype for leaf in nest.leaves(after)}
        torch.testing.assert_close(values.values, expected, atol=0.1, rtol=0.1)
        copied, after = network.bfloat16()(x, state, is_first)
    assert torch.bfloat16 not in {leaf.dtype for leaf in nest.leaves(after)}
    torch.testing.assert_close(copied.values, expected, atol=0.15, rtol=0.1)


def test_memories_of_a_stack_have_names():
    body = BODIES["stack of everything"]()
    body.build((D,), torch.float32)
    names = set(nest.flatten(body.initial_state(2, torch.device("cpu")), "state"))
    parts = {"stage0", "stage1.embeddings", "stage1.valid", "stage2.stage0.h", "stage2.stage1.h", "stage2.stage1.c"}
    assert names == {f"state.{part}" for part in parts}
    network = ModularNetwork(spaces.Box(-1, 1, (D,)), spaces.Discrete(2), body=Stack(MLP(4), MLP(5)))
    assert network.initial_state(3) == ()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, layer):
    centred = x - x.mean(-1, keepdims=True)
    scale, shift = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def numbers(parameter):
    return parameter.detach().double().numpy()


def test_normalised_lstm_is_the_papers_formula():
    body, x, is_first = built("normalised lstm"), torch.randn(T, B, D), torch.rand(T, B) < 0.2
    state, layer = used_state(body), body.lstm
    w, u = numbers(layer.weight_ih_l0), numbers(layer.weight_hh_l0)
    expected = np.zeros((T, B, 8))
    for b in range(B):
        h, c = numbers(state["h"][b]), numbers(state["c"][b])
        for t in range(T):
            if is_first[t, b]:
                h, c = np.zeros(8), np.zeros(8)
            i, f, g, o = np.split(norm(w @ numbers(x[t, b]), layer.norm_ih) + norm(u @ h, layer.norm_hh), 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(norm(c, layer.norm_c))
            expected[t, b] = h
    np.testing.assert_allclose(numbers(body(x, state, is_first)[0]), expected, atol=1e-5)


def test_gru_is_the_formula():
    body, x, is_first = built("gru"), torch.randn(T, B, D), torch.rand(T, B) < 0.2
    state, layer = used_state(body), body.gru
    w, u, p, q = (numbers(getattr(layer, f"{name}_l0")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    expected = np.zeros((T, B, 8))
    for b in range(B):
        h = numbers(state["h"][b])
        for t in range(T):
            h = np.zeros(8) if is_first[t, b] else h
            (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(w @ numbers(x[t, b]) + p, 3), np.split(u @ h + q, 3)
            r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
            h = (1 - z) * np.tanh(n_x + r * n_h) + z * h
            expected[t, b] = h
    np.testing.assert_allclose(numbers(body(x, state, is_first)[0]), expected, atol=1e-5)


def linear(layer, x):
    bias = 0 if layer.bias is None else numbers(layer.bias)
    return x @ numbers(layer.weight).T + bias


def gate(layer, x, y):
    (r_y, z_y, h_y), (r_x, z_x) = np.split(linear(layer.y, y), 3), np.split(linear(layer.x, x), 2)
    r, z = sigmoid(r_y + r_x), sigmoid(z_y + z_x)
    return (1 - z) * x + z * np.tanh(h_y + linear(layer.rx, r * x))


@pytest.mark.parametrize("name", ["attention", "attention beyond the slice", "attention on one row"])
def test_attention_is_the_formula(name):
    """Each row by itself: a list of the episode's newest embeddings, of which each head takes a weighted mean."""
    body, x, is_first = built(name), torch.randn(T, B, D), torch.rand(T, B) < 0.2
    state, expected = used_state(body), np.zeros((T, B, 8))
    for b in range(B):
        past = [numbers(e) for e, valid in zip(state["embeddings"][b], state["valid"][b], strict=True) if valid]
        for t in range(T):
            past = [] if is_first[t, b] else past
            e = linear(body.embed, numbers(x[t, b]))
            past = [*past, e][-body.memory - 1 :]
            query, found = linear(body.query, norm(e, body.norm)), []
            pairs = [np.split(linear(body.key_value, norm(seen, body.norm)), 2) for seen in past]
            for head, part in enumerate(np.split(np.arange(8), body.heads)):
                scores = [
                    query[part] @ key[part] / math.sqrt(len(part)) + numbers(body.nearness)[head, len(past) - 1 - place]
                    for place, (key, _) in enumerate(pairs)
                ]
                shares = np.exp(scores) / np.exp(scores).sum()
                found.extend(sum(share * value[part] for share, (_, value) in zip(shares, pairs, strict=True)))
            y = gate(body.gate, e, np.maximum(linear(body.mix, np.array(found)), 0))
            inner = linear(body.mlp[2], np.maximum(linear(body.mlp[0], norm(y, body.norm_mlp)), 0))
            expected[t, b] = gate(body.gate_mlp, y, np.maximum(inner, 0))
    np.testing.assert_allclose(numbers(body(x, state, is_first)[0]), expected, atol=1e-5)


def test_gates_are_nearly_closed_at_first():
    body = Attention(8, heads=2, memory=4)
    body.build((D,), torch.float32)
    assert body.gate.y.bias.tolist() == [0.0] * 8 + [-2.0] * 8 + [0.0] * 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Attention(10, heads=4), "size=10, heads=4"),
        (lambda: Attention(8, memory=0), "memory 1 or more"),
        (lambda: Stack(), "no stages"),
        (
            lambda: ModularNetwork(
                spaces.Box(-1, 1, (D,)), spaces.Discrete(2), body=Stack(GRU(6), torch.nn.Linear(5, 4))
            ),
            "Linear does not fit 6 features of GRU",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(SettingsError, match=words):
        make()


@pytest.mark.parametrize("algorithm", [VTrace, PPO])
@pytest.mark.parametrize("name", ["normalised lstm", "gru", "attention", "stack of everything"])
def test_what_played_is_what_learns(name, algorithm):
    """Log-probabilities from playing, session by session, are those of the unrolled batch; so nothing is clipped."""
    agent = agent_of(trunk=MLP(6), body=BODIES[name]())
    chains, is_first = Chains(8), np.zeros(8, bool)
    _, state, is_first = play_on(agent, chains, agent.initial_state(8), is_first, 7)
    batch, _, _ = play_on(agent, chains, state, is_first, 13)
    network = agent.network
    outputs, _ = network(batch.observations, batch.initial_state, batch.is_first)
    log_probs = network.distribution(tuple(leaf[:-1] for leaf in outputs.policy)).log_prob(batch.actions)
    played = batch.extras["behaviour_log_prob"]
    torch.testing.assert_close(log_probs, played, atol=1e-5, rtol=1e-5)
    metrics = algorithm(agent).train_step(batch)
    assert all(math.isfinite(metric) for metric in metrics.values())
