"""Rng: all random number generators that a process shares, as one state that a checkpoint can hold."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Seeds Python's, NumPy's and torch's generators."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def get_state() -> dict[str, Any]:
    """Where those generators are, as tensors and strings."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, np.asarray(keys).tolist(), *rest]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_state(state: Mapping[str, Any]) -> None:
    """Takes what `get_state` gave. Of CUDA devices only where there are as many as there were."""
    version, words, gauss = json.loads(state["python"])
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
