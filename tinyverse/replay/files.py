"""Stored sessions: what a replay holds, on disk, so that a checkpoint need not write all of it each time.

A session never changes once it is stored. So each checkpoint writes those that came since the one before into a file
of their own, names all files that hold its sessions with their checksums, and afterwards removes the others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import xxhash

from tinyverse.core.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

AT_ONCE = 16 << 20  # bytes that are written or read in one go


class Sessions(NamedTuple):
    """Sessions that are to be stored, by the numbers they have in a series."""

    series: str  # numbers mean sessions of this one only
    numbers: Tensor  # [n] int64
    width: int  # bytes of each
    read: Callable[[Tensor], tuple[Tensor, Tensor]]  # numbers [m] -> ([m, width] uint8, [m] bool: it was still there)


class StoredSessions:
    """The files of one run; only the process that trains it writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded = (0, 0)  # sessions read so far, of how many
        self._files: list[dict[str, Any]] = []  # those that the newest checkpoint names

    def write(self, sessions: Sessions) -> list[dict[str, Any]]:
        """Stores the sessions that are in no file yet; returns what `read` wants, for a checkpoint to hold.

        Those that are gone before they could be written are left out: they were the oldest.
        """
        import torch

        self.path.mkdir(parents=True, exist_ok=True)
        wanted = sessions.numbers
        files = [
            file for file in self._files
            if file["name"].startswith(f"{sessions.series}-") and torch.isin(file["numbers"], wanted).any()
        ]  # fmt: skip
        known = torch.cat([file["numbers"] for file in files]) if files else wanted[:0]
        new = wanted[~torch.isin(wanted, known)]
        if len(new):
            files.append(self._write_new(sessions, new))
        return files

    def _write_new(self, sessions: Sessions, new: Tensor) -> dict[str, Any]:
        import torch

        name = f"{sessions.series}-{int(new[-1]):012d}.rows"
        checksum, stored = xxhash.xxh3_64(), []
        with atomic_file(self.path / name) as file:
            for numbers in new.split(max(1, AT_ONCE // sessions.width)):
                rows, whole = sessions.read(numbers)
                data = rows.numpy().data.cast("B")
                file.write(data)
                checksum.update(data)
                stored.append(torch.where(whole, numbers, -1))
        return {"name": name, "numbers": torch.cat(stored), "width": sessions.width, "checksum": checksum.hexdigest()}

    def keep_only(self, files: Sequence[dict[str, Any]]) -> None:
        """Removes all other files, now that a checkpoint names these."""
        self._files = list(files)
        names = {file["name"] for file in files}
        for path in self.path.glob("*") if self.path.exists() else ():
            if path.name not in names:
                path.unlink()

    def read(self, files: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (numbers [m], bytes [m, width]) of what `write` returned; leaves out what is gone or damaged, and warns."""
        import torch

        count = sum(len(file["numbers"]) for file in files)
        self.loaded = (0, count)
        self._files = [dict(file) for file in files if self._is_whole(file)]
        for file in self._files:
            numbers, width = file["numbers"], file["width"]
            with (self.path / file["name"]).open("rb") as stream:
                for some in numbers.split(max(1, AT_ONCE // width)):
                    rows = torch.frombuffer(bytearray(stream.read(len(some) * width)), dtype=torch.uint8)
                    yield some, rows.view(len(some), width)
                    self.loaded = (self.loaded[0] + len(some), count)

    def _is_whole(self, file: Mapping[str, Any]) -> bool:
        path = self.path / file["name"]
        try:
            with path.open("rb") as stream:
                checksum = hashlib.file_digest(stream, xxhash.xxh3_64).hexdigest()
        except OSError as error:
            logger.warning("stored sessions are left out: %s.", error)
            return False
        if checksum != file["checksum"]:
            logger.warning("stored sessions are left out: %s is damaged.", path)
            return False
        return True
