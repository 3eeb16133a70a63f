"""Where a value comes from: the command line, the environment, a TOML file, the run's folder, the experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyverse.cli import main as cli
from tinyverse.cli import play, train
from tinyverse.cli.context import RunContext
from tinyverse.cli.options import TrainOptions
from tinyverse.trainer.run_folder import RunFolder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fast.toml").write_text(
        "entropy_cost = 0.5\n[train]\nbuffer-size = 77\nminutes = 3.5\nbatch-size = 5\n[play]\nnum-envs = 6\n"
    )


@pytest.fixture
def config(capsys):
    def command(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["catch", *words])
        return ended.value.code, *capsys.readouterr()

    return command


def values(said):
    assert said[0] == 0, said
    return {(row["part"], row["name"]): (row["value"], row["source"]) for row in json.loads(said[1])}


def test_each_value_has_its_source(config, monkeypatch):
    RunFolder("runs/catch").write_settings({"experiment": "catch", "settings": {"num_envs": 64}})
    monkeypatch.setenv("TINYVERSE_TRAIN_BATCH_SIZE", "9")
    found = values(config("config", "--config", "fast.toml", "-o", "learning_rate=0.25", "--json"))
    assert found["settings", "learning_rate"] == (0.25, "-o")
    assert found["settings", "entropy_cost"] == (0.5, "fast.toml")
    assert found["settings", "num_envs"] == (64, "runs/catch/settings.json")
    assert found["settings", "unroll_length"][1] == "make_experiment"
    assert found["train", "buffer-size"] == (77, "fast.toml [train]")
    assert found["train", "batch-size"] == (9, "$TINYVERSE_TRAIN_BATCH_SIZE")  # before the file, which says 5
    assert found["train", "publish_every"][1] == "the experiment"
    assert found["train", "save-every"] == (60.0, "default")
    assert found["play", "num-envs"] == (6, "fast.toml [play]")
    lines = config("config", "--config", "fast.toml")[1].splitlines()
    assert any(line.split() == ["train", "minutes", "3.5", "fast.toml", "[train]"] for line in lines)


def test_verbs_take_what_config_shows(monkeypatch, config):
    seen = []
    monkeypatch.setattr(play.play, "callback", lambda context, **options: seen.append(options["num_envs"]))
    monkeypatch.setattr(train.train, "callback", lambda context, options: seen.append((context, options)))
    assert config("play", "--config", "fast.toml")[0] == 0
    assert config("play", "--config", "fast.toml", "-b", "7")[0] == 0
    monkeypatch.setenv("TINYVERSE_PLAY_NUM_ENVS", "8")
    assert config("play", "--config", "fast.toml")[0] == 0
    assert config("train", "-b", "2", "--config", "fast.toml")[0] == 0
    *num_envs, (context, options) = seen
    assert num_envs == [6, 7, 8]
    assert isinstance(context, RunContext) and context.settings == {"entropy_cost": 0.5}
    assert isinstance(options, TrainOptions) and (options.batch_size, options.buffer_size, options.minutes) == (
        2,
        77,
        3.5,
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[trian]\nbatch = 1", "--config bad.toml: [trian] is no verb. Did you mean train?"),
        ("[train]\nbufer-size = 1", "train has no option 'bufer-size'. Did you mean buffer-size?"),
        ("[train]\nbuffer_size = 'many'", "'many' is not a valid integer"),
        ("learning_rat = 1", "there is no setting 'learning_rat'. Did you mean learning_rate?"),
        ("a = ", "--config bad.toml cannot be read"),
    ],
)
def test_a_wrong_file_is_said(config, text, sentence):
    Path("bad.toml").write_text(text)
    code, out, said = config("train", "--config", "bad.toml")
    assert code == 2 and not out and sentence in said and "Traceback" not in said
