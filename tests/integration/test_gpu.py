"""The same things on a CUDA device. They run where there is one: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinyverse.cli.context import RunContext
from tinyverse.cli.local import local
from tinyverse.cli.options import TrainOptions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_catch_learns_with_replay_and_learner_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = local.callback(
        RunContext("catch", quiet=True, seed=1), TrainOptions(updates=300, device="cuda", precision=precision)
    )
    assert trainer.replay.device.type == "cuda"
    assert sum(trainer.feeder.returns) / len(trainer.feeder.returns) > 0.8
