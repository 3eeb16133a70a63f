"""Any Atari game from its screen: V-trace with a clipped surrogate, and convolutions over the last 4 frames.

    tinyverse atari.py play -b 16      in as many terminals, on as many machines as you like
    tinyverse atari.py train
    tinyverse atari.py eval -n 5
    tinyverse atari.py run --players 2 -o env_id=ALE/Breakout-v5

Pong: a mean return of 18 over 100 episodes after 0.6 M steps (2.4 M frames), 8.5 minutes with `run --players 2 --seed 1
-o total_updates=45000` on 2 cores without a GPU. The learning rate falls to 0 over `total_updates`. A million steps make
11,700 updates, so the default lasts 10 M steps. Breakout, with `total_updates=60000`: 60 after 2.0 M steps, 30 minutes.

Rules: 84×84 grey pixels, frame skip 4 with the maximum of the last 2 frames, up to 30 no-op frames at the start, no sticky
actions, FIRE after a lost life. For learning only, rewards are clipped to ±1 and each life is an episode. Returns are of
whole games, in the game's own score.

The trainer uses each session 3 times, soon after it was played, in small batches. So it makes many updates, and clips each
of them. The network subtracts each pixel's running mean and normalises features. Otherwise the constant background hides
the few pixels that matter, and Breakout is not learned at all. `-o network=nature` is the larger network of 2015. On a CPU
the small one of 2013 learns more in the same time.
"""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import ModularNetwork, NatureConv, SmallConv, Window

NETWORKS = {"small": SmallConv, "nature": NatureConv}


def make_experiment(
    env_id="ALE/Pong-v5",
    network="small",
    learning_rate=2.5e-4,
    total_updates=120_000,
    entropy_cost=0.01,
    surrogate_clip=0.1,
    discount=0.99,
    unroll_length=64,
):
    def make_pool(num_envs, num_threads=1):
        return atari_pool(env_id, num_envs, num_threads=num_threads, episodic_life=True)

    def make_env(evaluation=False, render_mode=None):
        return atari_env(env_id, evaluation=evaluation, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        trunk = Window(4, NETWORKS[network](normalization="layer", center=True))
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return VTrace(
            agent, learning_rate=learning_rate, total_updates=total_updates, normalize_advantages=True,
            entropy_cost=entropy_cost, surrogate_clip=surrogate_clip, discount=discount, lambda_=0.95,
            max_grad_norm=0.5, optimizer="adam",
        )  # fmt: skip

    return Experiment(
        make_pool=make_pool, make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=16, batch_size=4, sampler="uniform", reuse=3, buffer_size=32,
        publish_every=4, precision="auto", frame_skip=FRAME_SKIP,
    )  # fmt: skip
