"""Weights: arrays by name, as a safetensors blob on the wire and as a file.

The blob holds version, update and step, so weights and version cannot be mixed up. It is not compressed.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from tinyverse.core import codec
from tinyverse.core.errors import CodecError, RunConflict, SettingsError
from tinyverse.core.files import atomic_write

UNREADABLE = (  # what torch.load raises for damaged files
    RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, LookupError, TypeError, AttributeError,
)  # fmt: skip
Weights = Mapping[str, np.ndarray]


def encode_weights(
    weights: Weights, *, version: int, update: int, step: int, bfloat16: bool = False, about: Mapping[str, str] = {}
) -> bytes:
    """Encodes weights, their numbers and more strings `about` them. With `bfloat16` float32 arrays take half the bytes."""
    names = [name for name, array in weights.items() if array.dtype == np.float32] if bfloat16 else []
    numbers = {"version": str(version), "update": str(update), "step": str(step)}
    return codec.encode(weights, {**about, **numbers}, bfloat16=names)


def decode_weights(blob: bytes) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns (arrays by name, {"version", "update", "step"}). Raises CodecError for other bytes."""
    arrays, metadata = codec.decode(blob)
    return arrays, {name: codec.whole_number(metadata, name) for name in ("version", "update", "step")}


class WeightsFile(NamedTuple):
    """Weights with their version, the experiment and settings they belong to, and the score of an evaluation."""

    weights: Weights
    version: int
    update: int = 0
    step: int = 0
    run_config: Mapping[str, Any] = {}  # {"experiment", "settings"}; {} where unknown
    score: Mapping[str, Any] = {}  # {"mean", "standard_error", "environments"} of an evaluation; {} for none

    def write(self, path: Path) -> None:
        """Writes a safetensors file atomically."""
        about = {"agreed": json.dumps(self.run_config, default=str), "score": json.dumps(self.score)}
        blob = encode_weights(self.weights, version=self.version, update=self.update, step=self.step, about=about)
        atomic_write(path, blob)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of `write`, or the weights of a trainer's checkpoint.

        Raises:
            SettingsError: the file is neither, or is damaged.
        """
        from tinyverse.core.run_config import checked, decode_settings

        try:
            if zipfile.is_zipfile(path):  # as torch.save writes it
                import torch

                return cls.of_checkpoint(torch.load(path, map_location="cpu", weights_only=True))
            blob = path.read_bytes()
            weights, numbers = decode_weights(blob)
            about = codec.decode(blob)[1]
            score = json.loads(about["score"])
            if not isinstance(score, dict) or not all(
                type(number) in (int, float) for number in score.values() if number is not None
            ):
                raise CodecError("its score is garbled.")
            return cls(weights, **numbers, run_config=checked(decode_settings(about["agreed"])), score=score)
        except (*UNREADABLE, CodecError, RunConflict) as error:
            raise SettingsError(
                f"{path} is no checkpoint of a trainer and no file of weights that tinyverse wrote ({type(error).__name__})."
            ) from None

    @classmethod
    def of_checkpoint(cls, contents: Mapping[str, Any]) -> Self:
        """Returns the weights in the contents of a trainer's checkpoint. Raises CodecError where it holds none."""
        from tinyverse.core.run_config import experiment_and_settings

        try:
            run_config = experiment_and_settings(contents.get("meta") or {})
            weights = {name: tensor.numpy() for name, tensor in contents["weights"].items()}
            numbers = (contents["version"], contents.get("update", 0), contents.get("step", 0))
            if all(type(number) is int for number in numbers):
                return cls(weights, *numbers, run_config)
            what = "its numbers are none"
        except (*UNREADABLE, RunConflict) as error:
            what = str(error)
        raise CodecError(
            f"the checkpoint holds no weights of a run: {what}. Take another one, or start anew with train --fresh."
        )


def plain(contents: Any) -> Any:
    """Returns a copy of nested dicts and lists with arrays as CPU tensors, all that `torch.load(weights_only=True)` takes."""
    import torch

    if isinstance(contents, Mapping):
        return {key: plain(value) for key, value in contents.items()}
    if isinstance(contents, (list, tuple)):
        return type(contents)(plain(value) for value in contents)
    if isinstance(contents, torch.Tensor):
        return contents.detach().to("cpu", copy=True)
    if isinstance(contents, np.ndarray):
        return torch.from_numpy(contents.copy())
    return contents.item() if isinstance(contents, np.generic) else contents
