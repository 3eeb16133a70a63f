"""CartPole with a stop watch in the environment, so that whatever plays it is timed in the same way.

The watch starts at the reset and stops when the mean return of the last 100 episodes has reached 475; then it asks this
process to finish, as Ctrl-C would, and writes what it saw to the file `result`.
"""

import json
import signal
import time
from collections import deque
from pathlib import Path

import gymnasium
import numpy as np
from torch import nn

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO
from tinyverse.networks import MLP, ModularNetwork

SOLVED, EPISODES = 475.0, 100


class StopWatch(gymnasium.vector.VectorWrapper):
    """Counts steps, seconds, and the seconds until CartPole is solved."""

    def __init__(self, env, result):
        super().__init__(env)
        self.result, self.steps = Path(result), 0

    def reset(self, **options):
        self.began, self.steps, self.seconds = time.perf_counter(), 0, None
        self.length, self.returns = np.zeros(self.num_envs), deque(maxlen=EPISODES)
        return self.env.reset(**options)

    def step(self, actions):
        step = self.env.step(actions)
        ended = step[2] | step[3]
        self.length += step[1]  # a reward of 1 for each step, and of 0 for the reset
        self.steps += self.num_envs
        if ended.any():
            self.returns.extend(self.length[ended])
            self.length[ended] = 0
            self.refresh()
        return step

    def refresh(self):
        if self.seconds is None and len(self.returns) == EPISODES and np.mean(self.returns) >= SOLVED:
            self.seconds = time.perf_counter() - self.began
            signal.raise_signal(signal.SIGINT)

    def close(self):
        if self.steps:  # not where only its spaces were wanted
            total = time.perf_counter() - self.began
            facts = {"steps_per_second": self.steps / total, "seconds": self.seconds, "steps": self.steps}
            self.result.write_text(json.dumps(facts))
        self.env.close()


SETTINGS = {
    # rl-baselines3-zoo's, whose 100,000 steps are 390 updates
    "same": {"num_envs": 8, "layers": (64, 64), "epochs": 20, "learning_rate": 1e-3, "total_updates": 390},
    "own": {"num_envs": 16, "layers": (64,), "epochs": 6, "learning_rate": 6e-3, "total_updates": 250},
}


def make_experiment(settings="same", result="result.json"):
    chosen = dict(SETTINGS[settings])
    num_envs, layers = chosen.pop("num_envs"), chosen.pop("layers")

    def make_pool(num_envs):
        pool = gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
        return StopWatch(pool, result)

    def make_agent(observation_space, action_space):
        trunk = MLP(*layers, activation=nn.Tanh)
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return PPO(
            agent, discount=0.98, lambda_=0.8, minibatches=1, clip=0.2, entropy_cost=0.0, value_cost=1.0, **chosen
        )

    return Experiment(
        make_pool=make_pool,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=32,
        num_envs=num_envs,
        batch_size=num_envs,
        publish_every=1,
    )
