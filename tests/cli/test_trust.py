"""Nothing that a server or a file of weights names is imported, and a run's own folder may hold anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command_line import Tinyverse, created, one_sentence
from tests.helpers.people import a_spec
from tinyverse.cli.context import RunContext
from tinyverse.core.run_config import run_config
from tinyverse.core.weights import WeightsFile
from tinyverse.database.redis import RedisDatabase

EVIL = {"env_id": "evil:CartPole-v1"}


def test_a_module_that_others_name_is_not_imported(
    tinyverse: Tinyverse, folder: Path, redis_url: str, monkeypatch
) -> None:
    (folder / "evil.py").write_text("open('imported', 'w')")
    WeightsFile({"a": np.zeros(1)}, 1, run_config={"experiment": "cartpole", "settings": EVIL}).write(
        Path("x.safetensors")
    )
    one_sentence(tinyverse("cartpole", "eval", "--weights", "x.safetensors"), 2, "evil:CartPole-v1 in x.safetensors")
    database = RedisDatabase(redis_url, "evil")
    database.create(run_config("cartpole", EVIL, a_spec()))
    monkeypatch.setenv("TINYVERSE_REDIS_URL", redis_url)
    for words in (["play"], ["train"], ["eval"], ["sessions", "show", "--values"]):
        said = tinyverse("cartpole", *words, "--name", "evil")
        assert said.code in (1, 2) and "Traceback" not in said.err
        assert words[0] in ("eval", "sessions") or "If you trust it, add -o env_id=evil:CartPole-v1" in said.err
    database.clear()
    database.close()
    assert not Path("imported").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", "null", '{"settings": []}', "\\xff", "[" * 50_000])
def test_a_spoiled_settings_file_is_one_sentence(tinyverse: Tinyverse, folder: Path, text: str) -> None:
    Path("runs/spoiled").mkdir(parents=True)
    Path("runs/spoiled/settings.json").write_text(text)
    for words in (["local", "-n", 1], ["report"], ["config"]):
        said = tinyverse("catch", *words, "--name", "spoiled")
        assert said.code in (1, 2) and "Traceback" not in said.err, said
        assert words == ["report"] or "settings.json cannot be read" in said.err


def test_a_spoiled_checkpoint_is_passed_over(
    tinyverse: Tinyverse, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    assert tinyverse("catch", "local", "-n", 1, "-q").code == 0
    good = next(Path("runs/catch/checkpoints").iterdir())
    for number, contents in enumerate(([1, 2], {"weights": 3, "version": 1}, {"weights": {}, "version": "x"})):
        torch.save(contents, good.with_name(f"update-00000010{number}.pt"))
        said = tinyverse("catch", "eval", "--weights", good.with_name(f"update-00000010{number}.pt"))
        one_sentence(said, 2, "is no checkpoint of a trainer")
        if number:
            said = tinyverse("catch", "eval")  # the newest
            one_sentence(said, 1, "the checkpoint holds no weights of a run")
            good.with_name(f"update-00000010{number}.pt").unlink()
    assert RunContext("catch").folder.load()["update"] == 1
    assert "trying the one before" in caplog.text


def test_info_says_what_the_folder_of_a_local_run_says(tinyverse: Tinyverse, folder: Path) -> None:
    assert tinyverse("catch", "local", "-n", 3, "-q").code == 0
    said = tinyverse("catch", "info")
    assert said.code == 0 and "update 3" in said.out and "this is what runs/catch/ says" in said.out.replace("\n", " ")
    assert json.loads(tinyverse("catch", "info", "--json").out)["update"] == 3
    assert tinyverse("catch", "info", "--name", "nowhere").code == 1


def test_advice_is_about_the_same_run_and_server(run: Tinyverse, tinyverse: Tinyverse, redis_url: str) -> None:
    from tinyverse.database.base import new_worker

    created(run)
    database = RedisDatabase(redis_url, run.name)  # type: ignore[attr-defined]
    database.beat(new_worker("play"))
    said = tinyverse("catch", "clear", "--yes", "--name", run.name)  # type: ignore[attr-defined]
    one_sentence(said, 1, f"(tinyverse catch stop --name {run.name})")  # type: ignore[attr-defined]
    database.clear()
    database.close()
    context = RunContext("my game.py", "a-b", redis="redis://u:secret@h:1/0")
    assert context.command("eval") == "tinyverse 'my game.py' eval --name a-b --redis 'redis://u:***@h:1/0'"
    assert RunContext("catch").command("eval", "--every") == "tinyverse catch eval --every"
