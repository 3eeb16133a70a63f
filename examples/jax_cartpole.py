"""PPO on CartPole in JAX: another framework's agent and learner with the same players and the same trainer.

    pip install -e '.[jax]'
    tinyverse jax_cartpole.py local
    tinyverse jax_cartpole.py run --players 1

tinyverse only needs NumPy arrays: `act` returns arrays, `batch.numpy()` turns the batch of `train_step` into arrays, and
weights are arrays by name. All else is functions that JAX compiles once.

The mean return over 100 episodes is 500 after 126,000, 251,000 and 145,000 steps, 20 to 41 s (seeds 1 to 3; `local`).
"""

from functools import partial

import gymnasium as gym
import numpy as np

from tinyverse import Agent, Experiment, Learner
from tinyverse.core.errors import ExperimentError

try:
    import jax
    import jax.numpy as jnp
    import optax
except ModuleNotFoundError as error:
    raise ExperimentError(f"this example needs {error.name}, which is not installed: pip install jax optax") from None


def network(weights, x):
    """Returns logits [..., A] and values [...] of observations [..., D], from two networks of two layers."""

    def tower(name):
        hidden = jnp.tanh(x @ weights[f"{name}.w0"] + weights[f"{name}.b0"])
        hidden = jnp.tanh(hidden @ weights[f"{name}.w1"] + weights[f"{name}.b1"])
        return hidden @ weights[f"{name}.w2"] + weights[f"{name}.b2"]

    return tower("policy"), tower("value")[..., 0]


def new_weights(key, inputs, actions, hidden=64):
    weights, begin = {}, jax.nn.initializers.orthogonal
    for name, outputs, last in (("policy", actions, 0.01), ("value", 1, 1.0)):
        sizes = (inputs, hidden, hidden, outputs)
        for i, gain in enumerate((2**0.5, 2**0.5, last)):
            key, own = jax.random.split(key)
            weights[f"{name}.w{i}"] = begin(gain)(own, sizes[i : i + 2])
            weights[f"{name}.b{i}"] = jnp.zeros(sizes[i + 1])
    return weights


@jax.jit
def choose(weights, x, key):
    """Returns sampled actions [n], the likeliest ones [n], and log-probabilities [n, A]."""
    log_probs = jax.nn.log_softmax(network(weights, x)[0])
    return jax.random.categorical(key, log_probs), log_probs.argmax(-1), log_probs


class JaxAgent(Agent):
    def __init__(self, observation_space, action_space):
        self.seed(np.random.randint(2**31))  # NumPy's own generator, which a trainer seeds
        self.weights = new_weights(self.key, observation_space.shape[0], int(action_space.n))

    def seed(self, seed):
        self.key = jax.random.key(seed)

    def act(self, observations, state, is_first, greedy=False):
        self.key, key = jax.random.split(self.key)
        drawn, best, log_probs = choose(self.weights, observations, key)
        actions = np.asarray(best if greedy else drawn, np.int64)
        return actions, state, {"behaviour_log_prob": np.asarray(log_probs)[np.arange(len(actions)), actions]}

    def get_weights(self):
        return {name: np.array(array) for name, array in self.weights.items()}

    def set_weights(self, weights):
        self.weights = {name: jnp.array(array) for name, array in weights.items()}


def advantages_of(rewards, discounts, continues, values, lambda_):
    """Returns generalised advantage estimates [T, B] (Schulman et al. 2016, eq. 16). values: [T+1, B]."""

    def back(following, row):
        delta, decay = row
        following = delta + decay * following
        return following, following

    deltas = rewards + discounts * values[1:] - values[:-1]
    rows = deltas, discounts * continues * lambda_
    return jax.lax.scan(back, jnp.zeros_like(deltas[0]), rows, reverse=True)[1]


def loss(weights, rows, *, clip, entropy_cost):
    """PPO's (Schulman et al. 2017, eq. 7 and 9), summed with each row's share in the mean."""
    logits, values = network(weights, rows["observations"][:-1])
    log_probs = jax.nn.log_softmax(logits)
    ratios = jnp.exp(jnp.take_along_axis(log_probs, rows["actions"][..., None], -1)[..., 0] - rows["behaviour"])
    gained = jnp.minimum(ratios * rows["advantages"], jnp.clip(ratios, 1 - clip, 1 + clip) * rows["advantages"])
    entropies = -(jnp.exp(log_probs) * log_probs).sum(-1)
    return (rows["share"] * (0.25 * (rows["targets"] - values) ** 2 - gained - entropy_cost * entropies)).sum()


@partial(jax.jit, static_argnames=("optimizer", "epochs"))
def update(weights, state, rows, *, optimizer, epochs, discount, lambda_, clip, entropy_cost):
    """New weights and optimizer state after `epochs` steps on one batch, and the last loss."""
    values, share = network(weights, rows["observations"])[1], rows["mask"] / rows["mask"].sum()
    discounts = discount * ~rows["terminated"]
    advantages = advantages_of(rows["rewards"], discounts, rows["continues"], values, lambda_)
    mean = (share * advantages).sum()
    deviation = jnp.sqrt((share * (advantages - mean) ** 2).sum() + 1e-8)
    made = {"advantages": (advantages - mean) / deviation, "targets": values[:-1] + advantages, "share": share}
    slope = jax.value_and_grad(partial(loss, clip=clip, entropy_cost=entropy_cost))

    def step(carried, _):
        weights, state = carried
        lost, slopes = slope(weights, rows | made)
        changes, state = optimizer.update(slopes, state)
        return (optax.apply_updates(weights, changes), state), lost

    (weights, state), lost = jax.lax.scan(step, (weights, state), length=epochs)
    return weights, state, lost[-1]


class JaxPPO(Learner):
    def __init__(self, agent, learning_rate, **options):
        self.agent, self.options = agent, options
        self.optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate))
        self.state = self.optimizer.init(agent.weights)

    def train_step(self, batch):
        batch = batch.numpy()
        rows = {name: getattr(batch, name) for name in ("observations", "actions", "rewards", "terminated")}
        rows |= {"continues": batch.continues, "mask": batch.mask, "behaviour": batch.extras["behaviour_log_prob"]}
        self.agent.weights, self.state, lost = update(
            self.agent.weights, self.state, rows, optimizer=self.optimizer, **self.options
        )
        return {"loss/total": float(lost)}

    def get_weights(self):
        return self.agent.get_weights()

    def state_dict(self):
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.state)]
        return {"weights": self.get_weights(), "optimizer": leaves}

    def load_state_dict(self, state):
        self.agent.set_weights({name: np.asarray(array) for name, array in state["weights"].items()})
        leaves = [jnp.asarray(np.asarray(leaf)) for leaf in state["optimizer"]]
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), leaves)


def make_experiment(
    env_id="CartPole-v1", learning_rate=2.5e-3, epochs=8, discount=0.98, clip=0.2, entropy_cost=0.0, num_envs=16
):
    def make_env(evaluation=False, render_mode=None):
        return gym.make(env_id, render_mode=render_mode)

    def make_learner(agent):
        return JaxPPO(
            agent, learning_rate, epochs=epochs, discount=discount, lambda_=0.9, clip=clip, entropy_cost=entropy_cost
        )

    return Experiment(
        make_env=make_env, make_agent=JaxAgent, make_learner=make_learner,
        unroll_length=32, num_envs=num_envs, batch_size=num_envs, publish_every=1,
    )  # fmt: skip
