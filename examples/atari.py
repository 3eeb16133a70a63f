"""Any Atari game from its screen: V-trace actor-critic on NatureConv over the last 4 frames.

    tinyverse atari.py play -b 16      in as many terminals, on as many machines as you like
    tinyverse atari.py train
    tinyverse atari.py eval -n 5
    tinyverse atari.py run --players 2 -o env_id=ALE/Breakout-v5

Rules: 84×84 grey, frame skip 4 with the maximum of the last 2, up to 30 no-op frames at the start, no sticky actions,
whole games as episodes. Rewards are clipped to ±1 for learning only; `eval` reports the game's own score.
"""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.envs.atari import FRAME_SKIP, atari_env, atari_pool
from tinyverse.networks import ModularNetwork, NatureConv, Window


def make_experiment(
    env_id="ALE/Pong-v5", learning_rate=5e-4, entropy_cost=0.01, discount=0.99, lambda_=0.95, unroll_length=20, batch=16,
    games=16, publish_every=2, max_grad_norm=1.0,
):  # fmt: skip
    def make_pool(num_games):
        return atari_pool(env_id, num_games)

    def make_env(evaluation=False, render_mode=None):
        return atari_env(env_id, evaluation=evaluation, render_mode=render_mode)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=Window(4, NatureConv())))

    def make_learner(agent):
        return VTrace(
            agent, learning_rate=learning_rate, entropy_cost=entropy_cost, discount=discount, lambda_=lambda_,
            max_grad_norm=max_grad_norm, optimizer="adam", normalize_advantages=True,
        )  # fmt: skip

    return Experiment(
        make_pool=make_pool, make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, batch=batch, games=games, publish_every=publish_every, precision="auto",
        frame_skip=FRAME_SKIP,
    )  # fmt: skip
