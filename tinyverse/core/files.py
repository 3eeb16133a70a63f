"""Atomic writes: a file is complete, or it is not there under its name."""

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tinyverse.core.system import is_gone

LEFTOVER_SECONDS = 3600.0  # without a write, after which an unfinished file of a process that is gone is removed


def atomic_write(path: Path, data: bytes, *, private: bool = False) -> None:
    """Writes a file in one piece: a reader, or a kill at any moment, finds the old file or the new one.

    Only the owner may ever open a `private` one.
    """
    remove_leftovers(path.parent, glob.escape(path.name))
    with atomic_file(path, private=private) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears as `path` once all of it is on the disk, unless the block raises."""
    with atomic_path(path) as temporary:
        mode = 0o600 if private else 0o666
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path, for libraries that open files themselves, and renames it to `path` when the block ends."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed processes have left behind of files whose names match the glob pattern `name`.

    A file goes if its process is gone from this machine (or had the id of this process, as in a restarted container)
    and nobody has written to it for an hour. The hour protects processes of other machines that share the folder.
    """
    for file in folder.glob(f"{name}.*.writing"):
        pid = file.name.split(".")[-2]
        gone = pid.isdecimal() and (int(pid) == os.getpid() or is_gone(int(pid)))
        with contextlib.suppress(OSError):
            if gone and time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink()
