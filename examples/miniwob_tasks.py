"""MiniWoB++: tasks on web pages, given in words. Here the task names one of two buttons, and the agent must click it.

    apt-get install chromium chromium-driver
    pip install -e '.[browser]'
    tinyverse miniwob_tasks.py run --players 1 --minutes 3
    tinyverse miniwob_tasks.py local -o task=click-button --minutes 5
    tinyverse miniwob_tasks.py eval -n 20 --no-video

Each episode of this task is one click. Random clicks are right half of the time, a mean reward of 0. The best is 1. A test
checks that two minutes of real time reach more than 0.6. With `-o by=coordinates` the agent may click anywhere on the page.
This works, but is not learned within minutes.
"""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.envs.miniwob import MiniWobEnv
from tinyverse.networks import ModularNetwork


def make_experiment(task="click-test-2", by="elements", learning_rate=2e-3, entropy_cost=0.02, num_envs=2):
    def make_env(evaluation=False):
        return MiniWobEnv(task, by=by)

    def make_agent(observation_space, action_space):
        return TorchAgent(ModularNetwork(observation_space, action_space))

    def make_learner(agent):
        return VTrace(
            agent, learning_rate=learning_rate, entropy_cost=entropy_cost, surrogate_clip=0.2, optimizer="adam"
        )

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=8, num_envs=num_envs, batch_size=8, sampler="uniform", reuse=4, buffer_size=32, publish_every=1,
        realtime=True,
    )  # fmt: skip
