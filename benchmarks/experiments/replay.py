"""What replay is worth: V-trace on an Atari game, each session learned from once, or also again from memory.

    tinyverse benchmarks/experiments/replay.py local --minutes 15 --seed 1 --name once
    tinyverse benchmarks/experiments/replay.py local --minutes 20 --seed 1 --name replay -o fresh=0.25
    tinyverse plot once replay

With `fresh=0.25` a batch of 8 has 2 new sessions and 6 out of the last 2,000; all else is the same. So a step that was
played is learned from four times on average, and costs that much more to learn from: replay pays where playing is dear.
What came of it: docs/results.
"""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import ModularNetwork, SmallConv, Window
from tinyverse.replay.samplers import Mixed


def make_experiment(env_id="ALE/Breakout-v5", fresh=1.0, learning_rate=3e-4, entropy_cost=0.01, unroll_length=16):
    def make_agent(observation_space, action_space):
        trunk = Window(4, SmallConv(normalization="layer", center=True))
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return VTrace(
            agent,
            learning_rate=learning_rate,
            entropy_cost=entropy_cost,
            normalize_advantages=True,
            lambda_=0.95,
            max_grad_norm=0.5,
            optimizer="adam",
        )

    return Experiment(
        make_pool=lambda num_envs, num_threads=1: atari_pool(
            env_id, num_envs, num_threads=num_threads, episodic_life=True
        ),
        make_env=lambda evaluation=False, render_mode=None: atari_env(
            env_id, evaluation=evaluation, render_mode=render_mode
        ),
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        num_envs=8,
        batch_size=8,
        sampler="fresh" if fresh == 1 else Mixed(fresh=fresh),
        buffer_size=2000,
        publish_every=1,
        precision="auto",
        frame_skip=FRAME_SKIP,
    )
