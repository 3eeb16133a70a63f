"""Any Atari game by R2D2: Q-learning with a memory, from prioritised replay of sequences.

    tinyverse atari_r2d2.py run --players 2 -o env_id=ALE/MsPacman-v5
    tinyverse atari_r2d2.py eval -n 5 --greedy

Rules are those of `atari.py`, but rewards are not clipped: values are of squashed returns. The network sees one frame
at a time and remembers the rest. Slices of 60 rows, the first 20 of them to warm the memory up, begin anywhere in
sessions of 80. 2000 sessions are 160,000 steps and 1.1 GB of frames on the trainer's device (`--buffer-size`).

That it plays and makes updates is tested; what it reaches has not been measured.
"""

from tinyverse import Experiment
from tinyverse.algorithms import R2D2
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import LSTM, ModularNetwork, NatureConv, SmallConv
from tinyverse.q_agent import QAgent
from tinyverse.samplers import Prioritized

NETWORKS = {"small": SmallConv, "nature": NatureConv}


def make_experiment(
    env_id="ALE/Pong-v5",
    network="small",
    learning_rate=2.5e-4,
    target_every=200,
    epsilon=0.4,
    reuse=4.0,
    burn_in=10,
    length=30,
):
    def make_pool(num_games, num_threads=1):
        return atari_pool(env_id, num_games, num_threads=num_threads)

    def make_env(evaluation=False, render_mode=None):
        return atari_env(env_id, evaluation=evaluation, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        trunk = NETWORKS[network](normalization="layer", center=True)
        net = ModularNetwork(observation_space, action_space, trunk=trunk, body=LSTM(256))
        return QAgent(net, action_space, epsilon=epsilon, greedy_epsilon=0.001)

    def make_learner(agent):
        return R2D2(agent, learning_rate=learning_rate, target_every=target_every, burn_in=burn_in, length=length)

    return Experiment(
        make_pool=make_pool,
        make_env=make_env,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=burn_in + length,
        games=16,
        batch=8,
        sampler=Prioritized(alpha=0.9, beta=0.6),
        reuse=reuse,
        buffer_size=3000,
        min_sessions=200,
        publish_every=10,
        precision="auto",
        frame_skip=FRAME_SKIP,
    )
