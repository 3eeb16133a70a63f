"""Random state: Python's, NumPy's and torch's global generators as one state that a checkpoint can hold."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def get_state() -> dict[str, Any]:
    """Returns the state of these generators as tensors and strings."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, np.asarray(keys).tolist(), *rest]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_state(state: Mapping[str, Any]) -> None:
    """Restores what `get_state` returned. CUDA generators are restored only if the number of devices is the same."""
    version, words, gauss = json.loads(state["python"])
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
