"""MuJoCo's robots by PPO. Running statistics scale observations and rewards to a size of about 1.

    pip install "gymnasium[mujoco]"
    tinyverse mujoco_ppo.py local -n 490
    tinyverse mujoco_ppo.py run --players 1 -o env_id=Hopper-v5
    tinyverse mujoco_ppo.py eval -n 10 --greedy

A video on a machine without a screen needs `apt-get install libosmesa6`, and `MUJOCO_GL=osmesa` before the command.

HalfCheetah: mean returns of 1,601, 1,353 and 1,456 over 100 episodes after a million steps, 7 to 10 minutes of one core
that did other work too. `eval --greedy -n 20` then gives 1,718, 1,570 and 1,589 (`local -n 490`, seeds 1 to 3). In the
video seed 1 slides on its back and does not turn over. SAC learns more from each step (`mujoco_sac.py`), PPO makes far
more steps per second.

Pendulum (`-n 80 -o env_id=Pendulum-v1 -o discount=0.9 -o learning_rate=1e-3 -o total_updates=80`): the same evaluation gives
−152, −199 and −201, each ± 25, after 163,000 steps, 1 to 2 minutes.
"""

import gymnasium as gym
from torch import nn

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO
from tinyverse.core.errors import ExperimentError
from tinyverse.networks import MLP, ModularNetwork, Normalized

RUNNERS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")


def make_experiment(
    env_id="HalfCheetah-v5",
    learning_rate=3e-4,
    total_updates=490,
    discount=0.99,
    epochs=10,
    entropy_cost=0.0,
    unroll_length=128,
    num_envs=16,
):
    def make_env(evaluation=False, render_mode=None):
        camera = {"camera_name": "track"} if render_mode and env_id.startswith(RUNNERS) else {}  # else it stands still
        try:
            return gym.make(env_id, render_mode=render_mode, **camera)
        except ModuleNotFoundError as error:
            raise ExperimentError(
                f'{env_id} needs {error.name}, which is not installed: pip install "gymnasium[mujoco]"'
            ) from None

    def make_agent(observation_space, action_space):
        def trunk():
            return Normalized(MLP(64, 64, activation=nn.Tanh))

        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk(), value_trunk=trunk()))

    def make_learner(agent):
        return PPO(
            agent, learning_rate=learning_rate, total_updates=total_updates, epochs=epochs, minibatches=num_envs,
            entropy_cost=entropy_cost, discount=discount, return_scale=True,
        )  # fmt: skip

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=num_envs, batch_size=num_envs, publish_every=1,
    )  # fmt: skip
