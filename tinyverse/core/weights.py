"""Weights on the wire: a safetensors blob with its version inside, never compressed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyverse.agents.agent import Weights
from tinyverse.core import codec


def encode_weights(
    weights: Weights,
    *,
    version: int,
    update: int,
    step: int,
    bfloat16: bool = False,
    about: Mapping[str, str] | None = None,
) -> bytes:
    """Weights with the version, update and step they belong to, and more strings; bfloat16 halves the float32 ones."""
    names = [name for name, array in weights.items() if array.dtype == np.float32] if bfloat16 else []
    numbers = {"version": str(version), "update": str(update), "step": str(step)}
    return codec.encode(weights, {**(about or {}), **numbers}, bfloat16=names)


def decode_weights(blob: bytes) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(arrays by name, {"version", "update", "step"}).

    Raises:
        CodecError: the bytes are no weights.
    """
    arrays, metadata = codec.decode(blob)
    return arrays, {name: codec.whole_number(metadata, name) for name in ("version", "update", "step")}
