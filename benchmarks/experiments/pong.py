"""Pong as benchmarks want it: the network of 2015 on 4 frames, and every step learned from once (PPO: in 4 epochs)."""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import PPO, VTrace
from tinyverse.envs.atari import FRAME_SKIP, atari_pool
from tinyverse.networks import ModularNetwork, NatureConv, Window

ALGORITHMS = {"vtrace": VTrace, "ppo": PPO}


def make_experiment(
    algorithm="vtrace", precision="fp32", unroll_length=20, batch_size=32, num_envs=32, publish_every=10
):
    def make_pool(num_envs):
        return atari_pool("pong", num_envs)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=Window(4, NatureConv())))

    def make_learner(agent):
        return ALGORITHMS[algorithm](agent, learning_rate=2.5e-4, reward_clip=1.0, max_grad_norm=0.5)

    return Experiment(
        make_pool=make_pool,
        make_agent=make_agent,
        make_learner=make_learner,
        unroll_length=unroll_length,
        batch_size=batch_size,
        num_envs=num_envs,
        sampler="fresh",
        publish_every=publish_every,
        precision=precision,
        frame_skip=FRAME_SKIP,
    )
