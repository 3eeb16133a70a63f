"""Run folder: the run config, and where its trainer keeps it on disk.

The run config (experiment, settings, session spec) is created by the first trainer; a player adopts it. The folder
`runs/<name>/` holds settings.json, metrics.jsonl, starts.jsonl (who trained it, where and with which words),
evaluations.jsonl, TensorBoard events, the newest checkpoints and the best weights.

    checkpoints/update-000001200.pt     weights, optimizer, counters, random numbers, settings: the newest 3
    replay/*.rows                       the stored sessions of the newest one, which knows their checksums
    best.safetensors                    the weights that evaluated best, with their score
"""

import contextlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyverse.core.errors import RunConflict, SettingsError
from tinyverse.core.files import atomic_file, atomic_write, remove_leftovers
from tinyverse.core.run_config import checked
from tinyverse.core.weights import UNREADABLE, WeightsFile, plain
from tinyverse.replay.files import Sessions, StoredSessions

logger = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 3


class RunFolder:
    """`runs/<name>/` of a trainer."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.stored = StoredSessions(self.path / "replay")
        self.best = self.path / "best.safetensors"
        self._writer: threading.Thread | None = None
        self._failure = ""  # of the last save; "" where it succeeded

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps out other processes of this machine, where no server's lease does; the kernel frees it however we end.

        Raises:
            RunConflict: another process of this machine trains into this folder.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as file:  # beside it: --fresh moves the folder
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunConflict(
                    f"another process trains into {self.path}/ already. End it first, or give this one its own --name."
                ) from None
            yield

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
        atomic_write(self.path / "settings.json", json.dumps(dict(settings), indent=2, default=str).encode())

    def settings(self) -> dict[str, Any]:
        """What `write_settings` wrote; {} when there is none."""
        file = self.path / "settings.json"
        try:
            stored = json.loads(file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            stored = None
        try:
            return checked(stored)
        except RunConflict:
            raise SettingsError(
                f"{file} cannot be read: it is no JSON of an experiment and its settings. Remove it, or start anew with train --fresh."
            ) from None

    def log(self, row: Mapping[str, Any], file: str = "metrics") -> None:
        """Appends a row to one of the logs.

        Args:
            file: "metrics"; "starts", which has who trained from then on, when, with which words, where, on what;
                "evaluations", which has what a single `eval` of the run's weights found (`eval --every` logs metrics); or
                "quarantine".
        """
        with (self.path / f"{file}.jsonl").open("a") as stream:
            stream.write(json.dumps(dict(row)) + "\n")

    def rows(self, file: str = "metrics") -> list[dict[str, Any]]:
        """All rows of a log so far; a line cut by a crash is left out, with what was appended to it."""
        path, rows = self.path / f"{file}.jsonl", []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def quarantine(self, update: int, sources: Sequence[str]) -> None:
        """Remembers the sessions of an update that gave NaN, by `Session.source`."""
        try:
            self.log({"update": update, "sessions": list(sources)}, "quarantine")
        except OSError as error:
            logger.warning("the sessions of update %s cannot be remembered (%s).", update, error)

    def quarantined(self) -> set[str]:
        """All that `quarantine` was given."""
        return {source for row in self.rows("quarantine") for source in row.get("sessions") or ()}

    def save(
        self, update: int, contents: Mapping[str, Any], sessions: Sessions | None = None, *, wait: bool = True
    ) -> Path:
        """Writes a checkpoint, whole or not at all, and keeps the newest 3; of stored sessions those of the newest.

        A kill at any moment leaves a checkpoint that can be read, and no sessions that are taken for others.

        Args:
            wait: False: a thread writes, while a copy of `contents` keeps the moment. `finish` waits for it.
        Raises:
            OSError: with `wait`, the file could not be written.
        """
        self.finish()
        path, copied = self.checkpoints / f"update-{update:09d}.pt", plain(contents)

        def write() -> None:
            try:
                self._write(path, copied, sessions)
                self._failure = ""
            except Exception as error:
                self._failure = str(error)
                if wait:
                    raise
                logger.warning("%s cannot be written (%s). Training goes on; those before it are whole.", path, error)

        if wait:
            write()
        else:
            self._writer = threading.Thread(target=write, name="checkpoint")  # no daemon: half a file is of no use
            self._writer.start()
        return path

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer is not None and self._writer.is_alive()

    def finish(self) -> bool:
        """Waits until what is being written is on the disk; whether it is."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        return not self._failure

    def _write(self, path: Path, contents: dict[str, Any], sessions: Sessions | None) -> None:
        import torch

        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if sessions is not None:
            contents["sessions"] = self.stored.write(sessions)
        remove_leftovers(self.checkpoints, "*")
        with atomic_file(path) as file:
            torch.save(contents, file)
        for old in self._files()[:-CHECKPOINTS_KEPT]:
            old.unlink()
        self.stored.keep_only(contents.get("sessions", []))

    def keep_best(self, candidate: WeightsFile) -> float:
        """Keeps these weights if they score above the best so far, or that was of the other mode; returns the best mean."""
        best = WeightsFile.read(self.best).score if self.best.exists() else None
        if (
            best is not None
            and best["mean"] >= candidate.score["mean"]
            and best.get("greedy", 0) == candidate.score.get("greedy", 0)
        ):
            return float(best["mean"])
        self.path.mkdir(parents=True, exist_ok=True)
        candidate.write(self.best)
        return float(candidate.score["mean"])

    def newest(self) -> Path | None:
        """The newest checkpoint's file."""
        return max(self._files(), default=None)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None. Local files only, and nothing in them is executed."""
        import torch

        for file in reversed(self._files()):
            try:
                contents: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                if not isinstance(contents, dict):
                    raise TypeError("it holds no checkpoint")
                return contents
            except UNREADABLE as error:
                logger.warning("%s cannot be read (%s); trying the one before.", file, type(error).__name__)
        return None

    def _files(self) -> list[Path]:
        return sorted(self.checkpoints.glob("update-*.pt")) if self.checkpoints.exists() else []
