"""Any Atari game by R2D2: Q-learning with a recurrent network, from prioritised replay of sequences.

    tinyverse atari_r2d2.py run --players 2 -o env_id=ALE/MsPacman-v5
    tinyverse atari_r2d2.py eval -n 5 --greedy

The rules are those of `atari.py`, but rewards are not clipped: values are of squashed returns. The network sees one frame
at a time and remembers the others. The trainer learns from whole sessions, starting from the recurrent state that the
player had. The first 10 rows only update this state with the present weights. 3,000 sessions are 120,000 steps and 0.9 GB
of frames on the trainer's device (`--buffer-size`).

Pong: a mean return of 0 over 100 exploring episodes after 676,000 steps (2.7 M frames), 10 after 792,000. Then the
environments that explore most keep it below 12 (from −11 to 20 at the end). After 1.12 M steps, 42 minutes of one core
(`local --seed 1`; the other core was busy too), `eval -n 6 --greedy` gives 20 in every game.
"""

from tinyverse import Experiment
from tinyverse.agents import QAgent
from tinyverse.algorithms import R2D2
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import LSTM, ModularNetwork, NatureConv, SmallConv
from tinyverse.replay import Prioritized

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
    def make_pool(num_envs, num_threads=1):
        return atari_pool(env_id, num_envs, num_threads=num_threads)

    def make_env(evaluation=False, render_mode=None):
        return atari_env(env_id, evaluation=evaluation, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        trunk = NETWORKS[network](normalization="layer", center=True)
        net = ModularNetwork(observation_space, action_space, trunk=trunk, body=LSTM(256))
        return QAgent(net, action_space, epsilon=epsilon, greedy_epsilon=0.001)

    def make_learner(agent):
        return R2D2(agent, learning_rate=learning_rate, target_every=target_every, burn_in=burn_in, length=length)

    return Experiment(
        make_pool=make_pool, make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=burn_in + length, num_envs=16, batch_size=8, sampler=Prioritized(alpha=0.9, beta=0.6),
        reuse=reuse, buffer_size=3000, min_sessions=200, publish_every=10, precision="auto", frame_skip=FRAME_SKIP,
    )  # fmt: skip
