"""A corridor of three steps, for algorithms: learned in seconds, and full of episode ends."""

import numpy as np
import torch
from gymnasium import spaces

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.networks import MLP, ModularNetwork

LENGTH = 3  # of the chain
OBSERVED = spaces.Discrete(LENGTH + 1)


class Chains:
    """B environments of a corridor: action 1 goes on and earns 1 at its end, action 0 gives up and earns nothing.

    Ends as NEXT_STEP does: a reset row after every end. A step outside the corridor is never rewarded.
    """

    def __init__(self, num_envs):
        self.place, self.resetting = np.zeros(num_envs, np.int64), np.zeros(num_envs, bool)

    def step(self, actions):
        valid = ~self.resetting
        self.place = np.where(valid, self.place + (actions == 1), 0)
        rewards = (valid & (self.place == LENGTH)).astype(np.float32)
        terminated = valid & ((actions == 0) | (self.place == LENGTH))
        self.resetting = terminated
        return self.place.copy(), rewards, terminated, valid


def pick(where, yes, no):
    return np.stack([yes[game] if chosen else no[game] for game, chosen in enumerate(where)])


def play(agent, num_envs, steps):
    return play_on(agent, Chains(num_envs), agent.initial_state(num_envs), np.zeros(num_envs, bool), steps)[0]


def play_on(agent, chains, state, is_first, steps):
    """A batch of the next steps, and the state and `is_first` to go on with."""
    num_envs, observations, rows = len(is_first), [chains.place.copy()], []
    arrays, fresh = agent.state_arrays(state), agent.state_arrays(agent.initial_state(num_envs))
    beginning = nest.map(torch.from_numpy, nest.map(lambda now, new: pick(is_first, new, now), arrays, fresh))
    for _ in range(steps):
        actions, state, extras = agent.act(observations[-1], state, is_first)
        place, rewards, terminated, valid = chains.step(actions)
        is_first = ~valid
        observations.append(place)
        rows.append((actions, rewards, terminated, valid, extras["behaviour_log_prob"]))
    actions, rewards, terminated, valid, log_probs = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    batch = Batch(
        observations=torch.from_numpy(np.stack(observations)),
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        valid=valid,
        initial_state=beginning,
        extras={"behaviour_log_prob": log_probs},
        weights=torch.ones(num_envs),
        lag=torch.zeros(num_envs),
        slots=torch.arange(num_envs),
    )
    return batch, state, is_first


def agent_of(**parts):
    torch.manual_seed(0)
    agent = TorchAgent(ModularNetwork(OBSERVED, spaces.Discrete(2), **(parts or {"trunk": MLP(16)})))
    agent.seed(0)
    return agent
