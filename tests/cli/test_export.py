"""Weights are written with their settings, as the kind of file that the suffix says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import Tinyverse, one_sentence
from tinyverse.cli import main as cli


def test_the_verb_writes_a_file(tmp_path, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    monkeypatch.chdir(tmp_path)
    for words in (["local", "-n", "1", "-q"], ["export", "x.onnx"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["catch", *words])
        assert ended.value.code == 0, capsys.readouterr()
    onnx.checker.check_model(onnx.load("x.onnx"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x.")] == ["x.onnx"]


def test_an_export_is_safetensors_with_its_settings_inside(tinyverse: Tinyverse) -> None:
    from safetensors import safe_open

    tinyverse("catch", "local", "-n", 1, "-q", "-o", "learning_rate=0.25")
    tinyverse("catch", "export", "x.safetensors")
    kept = torch.load(sorted(Path("runs/catch/checkpoints").iterdir())[-1], weights_only=True)["weights"]
    with safe_open("x.safetensors", "pt") as file:
        assert json.loads(file.metadata()["agreed"])["settings"]["learning_rate"] == 0.25
        assert file.keys() == sorted(kept) and all(torch.equal(file.get_tensor(name), kept[name]) for name in kept)


def test_export_says_what_it_wants(tinyverse: Tinyverse) -> None:
    tinyverse("tabular", "local", "-n", 3, "-q")
    one_sentence(tinyverse("tabular", "export", "x.bin"), 2, "suffix .safetensors or .onnx")
    one_sentence(tinyverse("tabular", "export", "no/x.onnx"), 2, "there is no folder no/")
    one_sentence(tinyverse("catch", "export", "x.safetensors"), 1, "has no weights yet")
