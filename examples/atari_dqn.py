"""Any Atari game by Q-learning from prioritised replay, as in Ape-X: many environments, each with its own ε.

    tinyverse atari_dqn.py run --players 2 -o env_id=ALE/Breakout-v5
    tinyverse atari_dqn.py eval -n 5 --greedy

The rules are those of `atari.py`. The training return is of environments that explore, some of them nearly half of the
time. `eval --greedy` has ε = 0.001.

Sessions are short, and the trainer learns from whole sessions. Each brings the window of 4 frames before its first row, so
no row only fills the window. 10,000 sessions are 100,000 steps and 1.0 GB of frames on the trainer's device
(`--buffer-size`).

Pong: a mean return of 10 over 100 exploring episodes after 608,000 steps (2.4 M frames), 17 after 723,000, 36 minutes
of one core (`local --seed 1`; the other core was busy too). Then `eval -n 6 --greedy` gives 21 in every game.
"""

from tinyverse import Experiment
from tinyverse.agents import QAgent
from tinyverse.algorithms import DQN
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import ModularNetwork, NatureConv, SmallConv, Window

NETWORKS = {"small": SmallConv, "nature": NatureConv}


def make_experiment(
    env_id="ALE/Pong-v5",
    network="small",
    learning_rate=2.5e-4,
    target_every=200,
    epsilon=0.4,
    reuse=4.0,
    discount=0.99,
    unroll_length=10,
):
    def make_pool(num_envs, num_threads=1):
        return atari_pool(env_id, num_envs, num_threads=num_threads, episodic_life=True)

    def make_env(evaluation=False, render_mode=None):
        return atari_env(env_id, evaluation=evaluation, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        trunk = Window(4, NETWORKS[network](normalization="layer", center=True))
        net = ModularNetwork(observation_space, action_space, trunk=trunk)
        return QAgent(net, action_space, epsilon=epsilon, greedy_epsilon=0.001)

    def make_learner(agent):
        return DQN(
            agent, learning_rate=learning_rate, target_every=target_every, discount=discount, n=3, reward_clip=1.0,
        )  # fmt: skip

    return Experiment(
        make_pool=make_pool, make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=16, batch_size=16, sampler="prioritized", reuse=reuse,
        buffer_size=10_000, min_sessions=500, publish_every=10, precision="auto", frame_skip=FRAME_SKIP,
    )  # fmt: skip
