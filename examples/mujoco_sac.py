"""MuJoCo: robots learn to run by SAC, with joints as observations and torques as actions. The default is HalfCheetah.

    pip install "gymnasium[mujoco]"
    tinyverse mujoco_sac.py run --players 2 --reuse 1024
    tinyverse mujoco_sac.py run -o env_id=Hopper-v5
    tinyverse mujoco_sac.py eval -n 10 --greedy

A video on a machine without a screen needs `apt-get install libosmesa6`, and `MUJOCO_GL=osmesa` before the command.

HalfCheetah, seed 1, one update per step: 2,137 ± 148 (10 greedy episodes) after 45,600 steps, 22 minutes of one core
that did other work too. Stable-Baselines3's SAC on the other core: 1,444 ± 270 after 40,000 (docs/results).

The paper and the default make one update for every step. A million updates take one CPU core about three hours.
`--reuse 1024` makes a quarter of them, so players make more steps and the trainer learns less from each.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms.sac import SAC
from tinyverse.core.errors import ExperimentError
from tinyverse.networks import MLP
from tinyverse.networks.squashed import SquashedActor

RUNNERS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")


def make_experiment(env_id="HalfCheetah-v5", learning_rate=3e-4, discount=0.99, updates_per_step=1.0, hidden=256):
    unroll_length, batch_size = 16, 256

    def make_env(evaluation=False, render_mode=None):
        camera = {"camera_name": "track"} if render_mode and env_id.startswith(RUNNERS) else {}  # else it stands still
        try:
            return gym.make(env_id, render_mode=render_mode, **camera)
        except ModuleNotFoundError as error:
            raise ExperimentError(
                f'{env_id} needs {error.name}, which is not installed: pip install "gymnasium[mujoco]"'
            ) from None

    def make_agent(observation_space, action_space):
        return TorchAgent(SquashedActor(observation_space, action_space, body=MLP(hidden, hidden)))

    def make_learner(agent):
        return SAC(agent, learning_rate=learning_rate, discount=discount)

    return Experiment(
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        num_envs=8,
        batch_size=batch_size,
        sampler="uniform",
        reuse=updates_per_step * batch_size * unroll_length,
        buffer_size=62_500,  # sessions: a million steps
        min_sessions=300,  # nearly 5,000 steps
        publish_every=50,
    )
