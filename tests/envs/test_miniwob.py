"""MiniWoB++: pages become arrays, clicks land on the elements they mean, and a task is learned in real Chromium."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyverse.cli.check import check
from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions
from tinyverse.core.errors import ExperimentError
from tinyverse.envs import miniwob
from tinyverse.envs.miniwob import FEATURES, MiniWobEnv

MATCH, BUTTON = 6, 7  # columns of `elements`


def element(ref: int, tag: str, text: str, left: float = 0.0, leaf: bool = True) -> dict[str, Any]:
    place = {
        name: np.array([value], np.float32)
        for name, value in [("left", left), ("top", 105), ("width", 40), ("height", 21)]
    }
    return {"ref": ref, "tag": tag, "text": text, "value": "", "flags": np.array([0, 1, 0, leaf]), **place}


PAGE = {
    "utterance": "Click button ONE.",
    "dom_elements": (
        element(1, "body", "", leaf=False),
        element(4, "button", "ONE", 80),
        element(5, "input_text", "TWO 3"),
    ),
    "screenshot": np.full((210, 160, 3), 200, np.uint8),
}


def test_a_page_becomes_arrays() -> None:
    env = MiniWobEnv(leaves=miniwob.LEAVES, num_elements=4, size=(21, 16))
    seen = env._observation(PAGE)
    assert env.observation_space.contains(seen) and seen["elements"].shape == (4, FEATURES)
    #                left top  width height focused tampered match button input link other
    one, two = [0.5, 0.5, 0.25, 0.1, 0, 1, 1, 1, 0, 0, 0], [0, 0.5, 0.25, 0.1, 0, 1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(seen["elements"][:2], [one, two], rtol=1e-6)
    assert not seen["elements"][2:].any() and seen["available_actions"].tolist() == [1, 1, 0, 0]
    assert seen["utterance"].sum() == 3 and (seen["screenshot"] == 200).all()
    assert env._click(1) == {"action_type": 1, "ref": 5, "coords": pytest.approx(np.zeros(2))}
    assert env._click(3)["action_type"] == 0  # there is no such row


def test_the_page_after_the_end_is_empty_and_still_offers_something() -> None:
    env = MiniWobEnv()
    seen = env._observation({"utterance": "", "dom_elements": (), "screenshot": PAGE["screenshot"]})
    assert env.observation_space.contains(seen) and seen["available_actions"].sum() == 1
    assert env._click(0)["action_type"] == 0


@pytest.mark.parametrize("options", [{"leaves": ["text"]}, {"leaves": []}, {"by": "touch"}])
def test_unknown_words_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match="leaves are some of elements, utterance, screenshot, and by is"):
        MiniWobEnv(**options)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("miniwob")
    with pytest.raises(ExperimentError, match="there is no task 'click-tset'"):
        MiniWobEnv("click-tset").reset()
    for variable in miniwob.PROGRAMS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExperimentError, match="chromium is not installed: apt-get install chromium chromium-driver"):
        MiniWobEnv().reset()


@pytest.mark.browser
@pytest.mark.skipif(not all(map(shutil.which, miniwob.PROGRAMS.values())), reason="needs chromium and chromium-driver")
class TestInChromium:
    @pytest.fixture(autouse=True)
    def _in_a_folder_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("miniwob")
        monkeypatch.chdir(tmp_path)

    def test_the_named_button_pays_and_the_other_costs(self) -> None:
        env = MiniWobEnv("click-test-2", leaves=miniwob.LEAVES)
        try:
            for right, reward in [(True, 1.0), (False, -1.0)]:
                seen, info = env.reset(seed=3)
                assert env.observation_space.contains(seen) and info["utterance"] == "Click button ONE."
                assert seen["screenshot"].std() > 10
                matches = seen["elements"][:2, MATCH]
                assert sorted(matches) == [0.0, 1.0] and seen["elements"][:2, BUTTON].tolist() == [1.0, 1.0]
                assert env.step(int(np.argmax(matches == right)))[1:4] == (reward, True, False)
        finally:
            env.close()

    def test_coordinates_click_where_they_say(self) -> None:
        env = MiniWobEnv("click-test-2", by="coordinates", grid=(16, 21))
        try:
            seen, _ = env.reset(seed=3)
            left, top, width, height = seen["elements"][int(np.argmax(seen["elements"][:2, MATCH]))][:4]
            cell = np.array([(left + width / 2) * 16, (top + height / 2) * 21]).astype(int)
            assert env.step(cell)[1:3] == (1.0, True)
        finally:
            env.close()

    def test_check_passes(self) -> None:
        assert "an update" in dict(check.callback(RunContext("miniwob_tasks", seed=1)))

    @pytest.mark.timeout(200)
    def test_the_task_is_learned_in_two_minutes(self) -> None:
        trainer = local.callback(RunContext("miniwob_tasks", seed=1, quiet=True), TrainOptions(minutes=2))
        assert trainer.row()["play/return"] > 0.6  # chance is 0
