"""StarCraft II: pysc2's own mock, with the real specs. Needs the packages of docs/starcraft.txt: `make test-starcraft`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyverse.agents.torch_agent import TorchAgent
from tinyverse.cli.check import check
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.core.errors import ExperimentError
from tinyverse.envs.starcraft import SCREEN_LAYERS, StarCraftEnv
from tinyverse.experiment.loader import load_module
from tinyverse.networks import ModularNetwork

needs_pysc2 = pytest.mark.skipif(importlib.util.find_spec("pysc2") is None, reason="see docs/starcraft.txt")


def mocked(**options: Any) -> StarCraftEnv:
    return StarCraftEnv(make_game=load_module("starcraft").mocked, **options)


@pytest.mark.skipif(importlib.util.find_spec("pysc2") is not None, reason="pysc2 is installed")
def test_without_pysc2_it_says_what_to_install() -> None:
    with pytest.raises(ExperimentError, match="not installed: pip install -r docs/starcraft.txt --no-deps"):
        StarCraftEnv()


@needs_pysc2
@pytest.mark.filterwarnings("ignore")  # of packages of 2022
class TestTheMock:
    def test_observations_are_those_that_were_asked_for(self) -> None:
        env = mocked(size=24)
        observation, _ = env.reset(seed=1)
        assert env.observation_space.contains(observation)
        assert observation["screen"].shape == (len(SCREEN_LAYERS), 24, 24)
        camera = observation["minimap"][2]  # the mock's camera is the upper left quarter
        assert camera[:12, :12].min() == 1.0 and camera.sum() == 144

    def test_the_mask_is_of_the_functions_that_the_game_offers(self) -> None:
        env = mocked()
        observation, _ = env.reset(seed=1)
        offered = env._now.observation["available_actions"]
        before = sum(leaf.n for name, leaf in env.action_space.spaces.items() if name < "function")
        functions = observation["available_actions"][before : before + env.action_space["function"].n]
        assert np.flatnonzero(functions).tolist() == sorted(offered) and 0 < len(offered) < len(functions)
        assert observation["available_actions"].sum() == len(observation["available_actions"]) - len(functions) + len(
            offered
        )

    def test_an_agent_chooses_only_what_is_offered(self) -> None:
        env = mocked()
        observation, _ = env.reset(seed=1)
        agent = TorchAgent(ModularNetwork(env.observation_space, env.action_space))
        agent.seed(0)
        offered = env._now.observation["available_actions"]
        batch, memory = {name: leaf[None] for name, leaf in observation.items()}, agent.initial_state(1)
        for _ in range(50):
            actions, memory, _ = agent.act(batch, memory, np.zeros(1, bool))
            assert actions["function"][0] in offered

    def test_points_go_out_as_x_and_y_and_only_what_a_function_takes(self) -> None:
        env = mocked()
        env.reset(seed=1)
        env._now.observation["available_actions"] = np.array([0, 2, 12])
        action = dict.fromkeys(env.action_space.spaces, 0) | {"select_point_act": 3, "screen": 5 * 32 + 7}
        call = env.call(action | {"function": 2})  # select_point
        assert (int(call.function), [list(map(int, part)) for part in call.arguments]) == (2, [[3], [7, 5]])
        assert env.call(action | {"function": 331}).function == 0  # not offered

    def test_episodes_end_as_the_mock_ends_them(self) -> None:
        env = mocked()
        env.reset(seed=1)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(10)]
        assert ends == [(False, False)] * 9 + [(True, False)]

    def test_it_plays_and_learns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        context = RunContext("starcraft", seed=1, quiet=True, settings={"mock": "true"})
        assert "an update" in dict(check.callback(context))
        trainer = local.callback(context, TrainOptions(updates=2))
        assert trainer.update == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"map_name": "MoveToBeacn"}, "knows no map 'MoveToBeacn'. Did you mean MoveToBeacon"),
            ({"screen_layers": ["creeps"]}, r"no layers \['creeps'\]; it has height_map"),
        ],
    )
    def test_wrong_arguments_are_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            StarCraftEnv(**options)

    def test_a_missing_game_is_explained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SC2PATH", str(tmp_path))
        monkeypatch.setenv("SC2_PATH", "elsewhere")
        with pytest.raises(
            ExperimentError, match=rf"not start from {tmp_path}.*pysc2 reads SC2PATH.*github.com/Blizzard"
        ):
            StarCraftEnv().reset()

    def test_a_missing_map_is_explained(self) -> None:
        def make_game(**options: Any) -> None:
            raise ValueError("Map mini_games/MoveToBeacon.SC2Map not found in /games/Maps.")

        with pytest.raises(ExperimentError, match=r"the map MoveToBeacon is not in .*Unpack it there, from https"):
            StarCraftEnv(make_game=make_game).reset()
