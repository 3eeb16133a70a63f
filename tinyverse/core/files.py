"""Files: written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tinyverse.core.system import is_gone

SILENT_SECONDS = 3600.0  # after which nobody writes into a file any more


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
