"""Run: what everyone in a run has agreed on, and where its trainer keeps it on disk.

The agreement (experiment, settings, session spec) is created by the first trainer; a player adopts it. The folder
`runs/<name>/` holds settings.json, metrics.jsonl, TensorBoard events and the newest checkpoints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyverse.errors import RunConflict, SettingsError
from tinyverse.session import SessionSpec

logger = logging.getLogger(__name__)

FORMAT = "1"
CHECKPOINTS_KEPT = 3
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError)  # what torch.load says of damage


def agreement(experiment: str, settings: Mapping[str, Any], spec: SessionSpec) -> dict[str, str]:
    """What a trainer publishes as the run's meta."""
    return {
        "format": FORMAT,
        "experiment": experiment,
        "settings": json.dumps(dict(settings), default=str),
        "spec": spec.to_json(),
    }


def agreed_of(meta: Mapping[str, str]) -> dict[str, Any]:
    """{"experiment", "settings"} of a run's meta, as settings.json holds them too; {} of an empty one."""
    if not meta:
        return {}
    if meta["format"] != FORMAT:
        raise RunConflict(
            f"the run speaks format {meta['format']}, this tinyverse {FORMAT}: use one version everywhere."
        )
    return {"experiment": meta["experiment"], "settings": json.loads(meta["settings"])}


def check_agreed(name: str, agreed: Mapping[str, Any], experiment: str, given: Mapping[str, Any]) -> None:
    """Whether a worker of `experiment` with the settings in `given` may join the run.

    Raises:
        RunConflict: another experiment, or a setting that differs; names both.
    """
    if not agreed:
        return
    if agreed["experiment"] != experiment:
        raise RunConflict(
            f"run {name} belongs to the experiment {agreed['experiment']}, this is {experiment}: give this one its own --name."
        )
    for key, value in json.loads(json.dumps(dict(given), default=str)).items():
        if agreed["settings"].get(key, value) != value:
            raise RunConflict(
                f"run {name} was made with {key}={agreed['settings'][key]}, this asks for {key}={value}: leave it out to join, "
                "choose another --name, or start anew with train --fresh."
            )


def check_spec(name: str, meta: Mapping[str, str], spec: SessionSpec) -> None:
    """Raises RunConflict where sessions made here would not be the run's sessions."""
    wrong = SessionSpec.from_json(meta["spec"]).difference(spec.fields)
    if wrong:
        raise RunConflict(f"run {name} cannot be joined: {wrong} Is the experiment file the same everywhere?")


class RunFolder:
    """`runs/<name>/` of a trainer."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"

    def start_fresh(self) -> Path | None:
        """Moves an older run of the same name aside and returns where to."""
        if not self.path.exists():
            return None
        stem = f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}"
        names = itertools.chain([stem], (f"{stem}.{number}" for number in itertools.count(2)))
        aside = next(path for path in map(self.path.with_name, names) if not path.exists())
        self.path.rename(aside)
        return aside

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        _write(self.path / "settings.json", json.dumps(dict(settings), indent=2, default=str).encode())

    def settings(self) -> dict[str, Any]:
        """What `write_settings` wrote; {} when there is none."""
        file = self.path / "settings.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends a row to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows logged so far; a line cut by a crash is left out, with what was appended to it."""
        file, rows = self.path / "metrics.jsonl", []
        for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def save(self, update: int, contents: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, whole or not at all, and keeps the newest 3."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        path = self.checkpoints / f"update-{update:09d}.pt"
        temporary = path.with_suffix(".writing")
        with temporary.open("wb") as file:
            torch.save(_plain(contents), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        for old in self._files()[:-CHECKPOINTS_KEPT]:
            old.unlink()
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint's file."""
        return max(self._files(), default=None)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None. Local files only, and nothing in them is executed."""
        for file in reversed(self._files()):
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except UNREADABLE as error:
                logger.warning("%s cannot be read (%s); trying the one before.", file, type(error).__name__)
        return None

    def _files(self) -> list[Path]:
        return sorted(self.checkpoints.glob("update-*.pt")) if self.checkpoints.exists() else []


def load_weights_file(path: Path) -> tuple[int, dict[str, Any]]:
    """(version, arrays by name) of the weights inside a checkpoint file.

    Raises:
        SettingsError: it is no checkpoint.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        return contents["version"], {name: tensor.numpy() for name, tensor in contents["weights"].items()}
    except (*UNREADABLE, LookupError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no checkpoint of a trainer ({type(error).__name__}).") from None


def _plain(contents: Any) -> Any:
    """Arrays as tensors: what `weights_only` reading accepts."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())
        return value.item() if isinstance(value, np.generic) else value

    if isinstance(contents, Mapping):
        return {key: _plain(value) for key, value in contents.items()}
    if isinstance(contents, (list, tuple)):
        return type(contents)(_plain(value) for value in contents)
    return convert(contents)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".writing")
    temporary.write_bytes(data)
    temporary.rename(path)
