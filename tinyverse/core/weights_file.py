"""Weights file: weights on disk, to be played or to begin another run from.

`export` and `best` write plain safetensors, which other programs read too; their metadata hold what the weights are of.
A trainer's checkpoint is read as well. Nothing in either is executed. Only where tensors are is torch imported:
`plot` and `info`, which need a folder's other files, would take seconds.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinyverse.agents.agent import Weights
from tinyverse.core.codec import decode
from tinyverse.core.errors import CodecError, SettingsError
from tinyverse.core.system import is_gone
from tinyverse.core.weights import decode_weights, encode_weights

UNREADABLE = (  # what torch.load says of damage
    RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, LookupError, TypeError, AttributeError,
)  # fmt: skip
SILENT_SECONDS = 3600.0  # after which nobody writes into a file any more


class WeightsFile(NamedTuple):
    """Weights, and what they are of."""

    weights: Weights
    version: int
    update: int = 0
    step: int = 0
    agreed: Mapping[str, Any] = {}  # {"experiment", "settings"}, where it is known
    score: Mapping[str, Any] = {}  # of an evaluation: {"mean", "standard_error", "games"}

    def write(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        about = {"agreed": json.dumps(self.agreed, default=str), "score": json.dumps(self.score)}
        blob = encode_weights(self.weights, version=self.version, update=self.update, step=self.step, about=about)
        write_whole(path, blob)

    @classmethod
    def read(cls, path: Path) -> WeightsFile:
        """What `write` wrote, or the weights of a checkpoint.

        Raises:
            SettingsError: it is neither, or damaged.
        """
        try:
            with path.open("rb") as file:
                is_checkpoint = file.read(2) == b"PK"
            return cls._of_file_of_torch(path) if is_checkpoint else cls._of_safetensors(path.read_bytes())
        except (*UNREADABLE, CodecError) as error:
            raise SettingsError(
                f"{path} is no checkpoint of a trainer and no file of weights that tinyverse wrote ({type(error).__name__})."
            ) from None

    @classmethod
    def _of_file_of_torch(cls, path: Path) -> WeightsFile:
        import torch

        return cls.of_checkpoint(torch.load(path, map_location="cpu", weights_only=True))

    @classmethod
    def of_checkpoint(cls, contents: Mapping[str, Any]) -> WeightsFile:
        """The weights of what a trainer saved."""
        meta = contents.get("meta")
        agreed = {"experiment": meta["experiment"], "settings": json.loads(meta["settings"])} if meta else {}
        weights = {name: tensor.numpy() for name, tensor in contents["weights"].items()}
        return cls(weights, contents["version"], contents.get("update", 0), contents.get("step", 0), agreed)

    @classmethod
    def _of_safetensors(cls, blob: bytes) -> WeightsFile:
        weights, numbers = decode_weights(blob)
        about = decode(blob)[1]
        return cls(weights, **numbers, agreed=json.loads(about["agreed"]), score=json.loads(about["score"]))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all: a reader, or a kill at any moment, finds the one before or the new one."""
    remove_leftovers(path.parent, glob.escape(path.name))
    with whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which gets its name when all of it is on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed writers of the files that `name` is a pattern of have left behind, half written.

    Their processes are gone from this machine, or had the number of this one, as in a container that was started again.
    Other machines, of which that says nothing, may share the folder; so nothing was written for an hour either.
    """
    for file in folder.glob(f"{name}.*.writing"):
        pid = file.name.split(".")[-2]
        gone = pid.isdecimal() and (int(pid) == os.getpid() or is_gone(int(pid)))
        with contextlib.suppress(OSError):
            if gone and time.time() - file.stat().st_mtime > SILENT_SECONDS:
                file.unlink()


def plain(contents: Any) -> Any:
    """A copy of nested dicts and lists in which arrays are tensors on the host: what `weights_only` reading accepts."""
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
