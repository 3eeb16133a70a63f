"""StarCraft II, mini-games or whole matches, from feature layers. You must install the game yourself.

    pip install -r docs/starcraft.txt --no-deps      in its own virtual environment, because its protobuf is of 2022
    export SC2PATH=~/StarCraftII                     the folder with Versions and Maps
    tinyverse starcraft.py run --players 2
    tinyverse starcraft.py run --players 2 -o map_name=CollectMineralShards

It follows pysc2's specs. The tests use pysc2's mock, whose observations never change and whose rewards are 0. They show that
it plays and learns. What return it reaches in the real game is not known.
"""

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.envs.starcraft import StarCraftEnv
from tinyverse.networks import MLP, FourConv, ModularNetwork


def mocked(**options):
    from pysc2.env.mock_sc2_env import SC2TestEnv

    return SC2TestEnv(**options)


def make_experiment(map_name="MoveToBeacon", size=32, learning_rate=3e-4, entropy_cost=0.01, mock=False):
    """Makes the experiment. With `mock`, pysc2's mock replaces the game."""

    def make_env(evaluation=False):
        return StarCraftEnv(map_name, size=size, make_game=mocked if mock else None)

    def make_agent(observation_space, action_space):
        trunk = {"screen": FourConv(), "minimap": FourConv(), "player": MLP(64)}
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return VTrace(agent, learning_rate=learning_rate, entropy_cost=entropy_cost, optimizer="adam")

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=20, num_envs=1, batch_size=4, publish_every=1,
    )  # fmt: skip
