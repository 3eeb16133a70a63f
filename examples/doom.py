"""Doom from its screen (ViZDoom): find the monster and shoot it. Other scenarios work too.

    pip install -e '.[vizdoom]'
    tinyverse doom.py run --players 2
    tinyverse doom.py run --players 2 --name center -o scenario=defend_the_center
    tinyverse doom.py eval -n 10
    tinyverse doom.py play --human     arrows and space; needs a screen

Basic pays 101 for the monster, −5 for a shot and −1 for every frame, of at most 300. One action lasts `frame_skip` frames.
The return over the last 100 training episodes is 70 after 93,000, 67,000 and 58,000 steps (4 frames each). `eval --greedy
-n 50` gives 78.5 ± 1.9, 81.4 ± 1.4 and 81.1 ± 1.3 after 7 minutes (`local`, seeds 1 to 3, one core each; other work slowed
Doom's own processes in the first run).

Defend the Center pays 1 for each monster and −1 for the player's death, with 26 bullets. Random actions get 0.3 (54
episodes). The return is 8 after 160,000 steps, 3 minutes, and at best 13.6 after 515,000, 9 minutes. `eval --greedy -n 50`
gives 12.7 ± 0.4 after 667,000 (`local -o scenario=defend_the_center`, seed 1).

Health Gathering pays 1 for each frame alive and −100 for a death before the last frame, the 2,100th. Random actions get
368 (46 episodes). Tests show that it plays and learns. Its return after training has not been measured.
"""

import gymnasium as gym

from tinyverse import Experiment, TorchAgent
from tinyverse.algorithms import VTrace
from tinyverse.core.errors import ExperimentError, SettingsError
from tinyverse.envs.wrappers import PreprocessImage
from tinyverse.networks import ModularNetwork, SmallConv, Window

FRAMES_PER_SECOND = 35  # of the game
SCENARIOS = {
    "basic": "Basic",
    "defend_the_center": "DefendCenter",
    "defend_the_line": "DefendLine",
    "health_gathering": "HealthGathering",
}  # ViZDoom's names; each has two moves and one more button, pressed one at a time


class Screen(gym.ObservationWrapper):
    """Observes only the screen, without the game's own variables."""

    def __init__(self, env, frame_skip):
        super().__init__(env)
        self.observation_space = env.observation_space["screen"]
        self.metadata = {**env.metadata, "render_fps": FRAMES_PER_SECOND / frame_skip}

    def observation(self, observation):
        return observation["screen"]


def make_experiment(
    scenario="basic",
    frame_skip=4,
    learning_rate=5e-4,
    entropy_cost=0.01,
    surrogate_clip=0.1,
    discount=0.99,
    unroll_length=32,
):
    if scenario not in SCENARIOS:
        raise SettingsError(f"scenario={scenario!r} is unknown. Use one of {', '.join(SCENARIOS)}.")

    def make_env(evaluation=False, render_mode=None):
        try:
            from vizdoom import gymnasium_wrapper  # noqa: F401 (registers the ids)
        except ModuleNotFoundError as error:
            raise ExperimentError(f"Doom needs {error.name}, which is not installed: pip install vizdoom") from None
        options = {"frame_skip": frame_skip, "screen_resolution": "RES_160X120"}
        env = gym.make(f"Vizdoom{SCENARIOS[scenario]}-v1", render_mode=render_mode, **options)
        return PreprocessImage(Screen(env, frame_skip), height=48, width=64)

    def make_agent(observation_space, action_space):
        trunk = Window(2, SmallConv(128, normalization="layer", center=True))
        return TorchAgent(ModularNetwork(observation_space, action_space, trunk=trunk))

    def make_learner(agent):
        return VTrace(
            agent, learning_rate=learning_rate, entropy_cost=entropy_cost, surrogate_clip=surrogate_clip,
            discount=discount, lambda_=0.95, reward_clip=None, return_scale=True, max_grad_norm=0.5, optimizer="adam",
        )  # fmt: skip

    return Experiment(
        make_env=make_env, make_agent=make_agent, make_learner=make_learner,
        unroll_length=unroll_length, num_envs=8, batch_size=16, sampler="uniform", reuse=3, buffer_size=32,
        publish_every=1, precision="auto", frame_skip=frame_skip,
        keys={"left": 3, "right": 2, "space": 1, "up": 1, "": 0},
    )  # fmt: skip
