"""From Python: a function is run, also one that is in no file; what comes out plays. And what `new` writes works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyverse
from tinyverse.cli import main as cli
from tinyverse.core.errors import NoWeights, SettingsError
from tinyverse.trainer.run_folder import RunFolder

CHECKOUT = Path(__file__).parent.parent
ENV = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def python(*words, timeout=200):
    done = subprocess.run(
        [sys.executable, *words], env=ENV, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_gives_a_curve_and_an_agent_that_plays():
    curve = tinyverse.run("catch", players=0, updates=30, seed=1, quiet=True, learning_rate=2e-3)
    assert curve.folder == Path("runs/catch") and len(curve.steps) == len(curve.returns) > 0
    assert curve._repr_png_().startswith(b"\x89PNG")
    loaded = tinyverse.load("runs/catch")
    assert loaded.settings["learning_rate"] == 2e-3 and loaded.version == 30
    observations, _ = loaded.experiment.env().reset(seed=0)
    actions, _, _ = loaded.agent.act(observations[None], loaded.agent.initial_state(1), np.ones(1, bool))
    assert loaded.experiment.spaces()[1].contains(actions[0])
    longer = tinyverse.run("catch", players=0, updates=5, quiet=True)
    assert longer.steps[-1] > curve.steps[-1] and tinyverse.load("runs/catch").version > 30
    anew = tinyverse.run("catch", players=0, updates=2, quiet=True, fresh=True)
    assert tinyverse.load(anew.folder).version == 2


SCRIPT = """
import gymnasium
import tinyverse
from tinyverse.algorithms import A2C
from tinyverse.networks import MLP, ModularNetwork

GAME = "CartPole-v1"

def make_experiment(width=8):  # in no file that a player could import
    return tinyverse.Experiment(
        make_env=lambda evaluation=False: gymnasium.make(GAME),
        make_agent=lambda see, act: tinyverse.TorchAgent(ModularNetwork(see, act, trunk=MLP(width))),
        make_learner=lambda agent: A2C(agent, learning_rate=1e-3, optimizer="adam"),
        num_envs=4, batch_size=8, publish_every=1,
    )

curve = tinyverse.run(make_experiment, players=PLAYERS, updates=5, seed=1, quiet=True, name="here", width=9)
print(curve.folder, tinyverse.load(curve.folder).version > 0, tinyverse.load("runs/here").settings)
"""


@pytest.mark.parametrize("players", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_function_of_a_script_reaches_the_players(players):
    Path("script.py").write_text(SCRIPT.replace("PLAYERS", str(players)))
    assert python("script.py").splitlines()[-1] == "runs/here True {'width': 9}"


def test_a_setting_may_be_called_as_a_keyword_of_run():
    Path("clash.py").write_text(
        "import catch\ndef make_experiment(seed=0, num_envs=4):\n    return catch.make_experiment(num_envs=num_envs)\n"
    )
    sys.path.insert(0, str(CHECKOUT / "examples"))
    options = {"players": 0, "updates": 1, "quiet": True}
    with pytest.raises(SettingsError, match=r"seed is a keyword .* setting of clash: .* settings=\{'seed': …\}"):
        tinyverse.run("clash.py", seed=3, **options)
    folder = tinyverse.run("clash.py", seed=3, settings={"seed": 7}, num_envs=8, **options).folder
    told = RunFolder(folder).settings()
    assert (told["seed"], told["settings"]) == (3, {"seed": 7, "num_envs": 8})
    assert RunFolder(tinyverse.run("clash.py", name="other", **options).folder).settings()["settings"]["seed"] == 0


def test_what_cannot_be_run_or_loaded_is_said():
    with pytest.raises(SettingsError, match=r"say when to end: tinyverse\.run\(make_experiment, minutes=5\)"):
        tinyverse.run("catch")
    with pytest.raises(SettingsError, match="no setting 'learning_rat'. Did you mean learning_rate"):
        tinyverse.run("catch", updates=1, players=0, learning_rat=1)
    with pytest.raises(NoWeights, match="nowhere holds no checkpoint"):
        tinyverse.load("nowhere")
    tinyverse.run("catch", players=0, updates=1, quiet=True)
    with pytest.raises(NoWeights, match="runs/catch holds no best weights"):
        tinyverse.load("runs/catch", best=True)
    Path("runs/catch/starts.jsonl").unlink()
    with pytest.raises(SettingsError, match="runs/catch does not say where its experiment is"):
        tinyverse.load("runs/catch")
    assert tinyverse.load("runs/catch", experiment="catch").version == 1


def new(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["new", *words])
    return ended.value.code


@pytest.mark.slow
@pytest.mark.timeout(400)  # five programs, each of which imports torch
def test_a_new_experiment_passes_its_own_test_and_check(capsys):
    assert new("my_game.py") == 0
    assert capsys.readouterr().out.startswith("wrote my_game.py and test_my_game.py. Next: tinyverse my_game.py check")
    assert "3 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_game.py")
    assert "all is well" in python("-m", "tinyverse", "my_game.py", "check")
    python("-m", "tinyverse", "my_game.py", "local", "-n", "1", "-q")
    assert "video: records/my_game-v1.webm" in python("-m", "tinyverse", "my_game.py", "eval")


def test_new_overwrites_nothing(capsys):
    Path("test_my_game.py").write_text("mine")
    for words, sentence in [("my_game.py", "test_my_game.py is there already"), ("my-game.py", "a name that Python can import"), ("a", "my_game.py")]:  # fmt: skip
        assert new(words) == 2
        assert sentence in capsys.readouterr().err
    assert [file.name for file in Path().iterdir()] == ["test_my_game.py"]


NOTEBOOK = CHECKOUT / "examples" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_in_jupyter(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    os.environ["PYTHONPATH"] = str(CHECKOUT)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_as_a_script():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code"), "committed without outputs"
    Path("cells.py").write_text("\n".join(code))
    python("cells.py")
