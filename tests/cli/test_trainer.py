"""What `train`, `run` and `local` have in common: options, the run's folder, and what they go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.command_line import Tinyverse, one_sentence
from tinyverse.cli import trainer as training
from tinyverse.cli.context import RunContext
from tinyverse.trainer.run_folder import RunFolder


def test_compile_says_what_it_misses(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tinyverse("tabular", "local", "-n", 1, "--name", "c", "--compile")
    assert said.code != 0 and "wants an agent with a PyTorch network" in said.err
    monkeypatch.setattr("shutil.which", lambda name: None)
    said = tinyverse("catch", "local", "-n", 1, "--name", "d", "--compile")
    assert said.code != 0 and "wants a C++ compiler" in said.err


@pytest.mark.slow
@pytest.mark.timeout(600)  # it compiles C++
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile itself calls it
def test_compile_learns_the_same(tinyverse: Tinyverse) -> None:
    rows = []
    for name, words in (("plain", ()), ("compiled", ("--compile",))):
        assert tinyverse("catch", "local", "-n", 3, "--name", name, "--seed", 1, *words).code == 0
        rows.append(json.loads(Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()[-1]))
    assert rows[1]["loss/total"] == pytest.approx(rows[0]["loss/total"], rel=1e-3)


def test_profile_writes_a_file(tinyverse: Tinyverse) -> None:
    assert tinyverse("tabular", "local", "-n", 2, "--name", "p").code == 0
    assert not Path("runs/p/profile.txt").exists()
    assert tinyverse("tabular", "local", "-n", 2, "--name", "p", "--profile").code == 0
    assert "player.py" in Path("runs/p/profile.txt").read_text()


def test_resume_and_fresh(tinyverse: Tinyverse) -> None:
    def updates() -> int:
        return json.loads(Path("runs/tabular/metrics.jsonl").read_text().splitlines()[-1])["update"]

    one_sentence(tinyverse("tabular", "local", "-n", 2, "--resume"), 2, "--resume: there is nothing in runs/tabular/")
    tinyverse("tabular", "local", "-n", 2)
    tinyverse("tabular", "local", "-n", 3, "--resume")
    assert updates() == 5
    said = tinyverse("tabular", "local", "-n", 1, "--fresh")
    assert said.code == 0 and updates() == 1
    assert "the older run is kept in runs/tabular." in said.err and len(list(Path("runs").glob("tabular*"))) == 2


def test_other_settings_are_listed_and_forced(tinyverse: Tinyverse) -> None:
    def settings() -> dict[str, Any]:
        return json.loads(Path("runs/tabular/settings.json").read_text())["settings"]

    tinyverse("tabular", "local", "-n", 2)
    words = ["tabular", "local", "-n", 3, "-o", "learning_rate=0.25", "-o", "discount=0.9"]
    before = settings()
    parts = [f"learning_rate={before['learning_rate']}, discount={before['discount']}"]
    parts += ["learning_rate=0.25, discount=0.9", "--fresh", "--force"]
    one_sentence(tinyverse(*words, "--resume"), 1, *parts)
    assert settings() == before
    one_sentence(tinyverse(*words, "--force", "--fresh"), 2, "leave one of them out")
    assert tinyverse(*words, "--force").code == 0
    assert settings() == {**before, "learning_rate": 0.25, "discount": 0.9}
    assert json.loads(Path("runs/tabular/metrics.jsonl").read_text().splitlines()[-1])["update"] == 5
    said = tinyverse(*words[:4]).err  # without -o: as the run is, not as its file says
    assert "goes on with learning_rate=0.25, discount=0.9" in said and f"its file says {parts[0]}" in said
    assert settings() == {**before, "learning_rate": 0.25, "discount": 0.9}
    assert "goes on with" not in tinyverse(*words).err
    file = Path("runs/tabular/settings.json")
    file.write_text(file.read_text().replace("slippery", "icy"))  # as if the experiment had renamed it since
    one_sentence(tinyverse(*words[:4]), 1, "was made with icy, which tabular has no longer", "--name", "--fresh")
    assert tinyverse(*words[:4], "--fresh").code == 0


def test_a_run_begins_with_weights_of_another(tinyverse: Tinyverse, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyverse.agents.torch_agent import TorchAgent

    taken: list[Any] = []
    monkeypatch.setattr(TorchAgent, "set_weights", lambda self, weights: taken.append(weights))
    tinyverse("catch", "local", "-n", 1, "-q", "--name", "old")
    (file,) = Path("runs/old/checkpoints").iterdir()
    words = ["catch", "local", "-n", 1, "--name", "new", "--init-from", file]
    said = tinyverse(*words)
    assert said.code == 0 and f"run new begins with the weights in {file}" in said.err
    kept = torch.load(file, weights_only=True)["weights"]
    assert all((taken[0][name] == kept[name].numpy()).all() for name in kept) and len(taken) == 1
    said = tinyverse(*words)  # the same command goes on
    assert said.code == 0 and "goes on with its own weights" in said.err and len(taken) == 1
    one_sentence(tinyverse("catch", "local", "--init-from", "x.pt"), 2, "--init-from x.pt: there is no such file")


def test_weights_that_do_not_fit_begin_no_run(tinyverse: Tinyverse) -> None:
    tinyverse("cartpole", "local", "-n", 1, "-q")
    (file,) = Path("runs/cartpole/checkpoints").iterdir()
    one_sentence(tinyverse("catch", "local", "--init-from", file), 1, "Weight ", "made by another network")


def test_save_replay(tinyverse: Tinyverse) -> None:
    def stored(option: str) -> Any:
        assert tinyverse("catch", "local", "-n", 1, "-q", "--name", f"x{option}", option).code == 0
        (file,) = Path(f"runs/x{option}/checkpoints").iterdir()
        return torch.load(file, weights_only=True)["replay"]

    assert stored("--save-replay") is not None and stored("--no-save-replay") is None


@pytest.mark.parametrize("verb", ["local", "run"])
def test_two_do_not_train_into_one_folder(tinyverse: Tinyverse, verb: str) -> None:
    with RunFolder("runs/catch").alone():
        one_sentence(tinyverse("catch", verb), 1, "another process trains into runs/catch/ already. End it first")
    with RunFolder("runs/catch").alone():  # it has let go
        pass


def test_that_the_end_is_near_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([False, True])
    asks = training.saying_so(RunContext("catch"), lambda: next(answers))
    assert [asks(), asks(), asks()] == [False, True, True]
    assert capsys.readouterr().err == "tinyverse: saves and ends; Ctrl-C again ends at once\n"
