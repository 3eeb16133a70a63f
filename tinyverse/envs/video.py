"""VideoWriter: writes .webm files that any browser plays, with OpenCV only.

OpenCV fails silently, so this module checks its results.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tinyverse.core import nest
from tinyverse.core.errors import TinyverseError

WATCHABLE = 320  # pixels; frames whose longer side is shorter are enlarged


class VideoWriter:
    """Writes RGB or grey frames to a VP8 .webm, which gets its name when it is complete.

        with VideoWriter("records/game.webm", fps=15) as video:
            video.write(env.render())

    Small frames are enlarged by a whole factor. Odd sides get one black line, because VP8 wants even ones. If the block
    raises, no file is left behind.

    Args:
        path: ends with .webm.
        fps: frames per second.
    Raises:
        TinyverseError: a frame is no image or has another size than the first, there was none, or OpenCV cannot write.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = 30) -> None:
        self.path, self.fps, self.frames = Path(path), fps, 0
        if self.path.suffix != ".webm":
            raise TinyverseError(
                f"a video is a .webm file, not {self.path.name!r}. Call it {self.path.with_suffix('.webm').name}."
            )
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.webm")
        self._shape: tuple[int, ...] = ()
        self._writer: Any = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame: [H, W], [H, W, 1] or [H, W, 3] RGB, uint8."""
        frame = _checked(frame)
        if self._writer is None:
            self._open(frame)
        if frame.shape != self._shape:
            raise TinyverseError(
                f"frame {self.frames} is {list(frame.shape)}, the others {list(self._shape)}; a video has one size."
            )
        self._writer.write(_drawn(frame))
        self.frames += 1

    def close(self) -> None:
        """Completes the file."""
        if self._writer is None:
            raise TinyverseError(f"no frame was written to {self.path}.")
        self._writer.release()
        if not self._partial.exists() or self._partial.stat().st_size < 4 * self.frames:
            self._partial.unlink(missing_ok=True)
            raise TinyverseError(f"OpenCV could not write {self.path}. Is the disk full?")
        os.replace(self._partial, self.path)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.release()
            self._partial.unlink(missing_ok=True)

    def _open(self, frame: np.ndarray) -> None:
        self._shape = frame.shape
        height, width = _drawn(frame).shape[:2]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TinyverseError(f"{self.path.parent} cannot be made a folder for videos: {error.strerror}.") from None
        with _without_stderr():  # OpenCV's ffmpeg warns about a codec tag that every browser plays
            code = cv2.VideoWriter.fourcc(*"VP80")
            self._writer = cv2.VideoWriter(str(self._partial), code, self.fps, (width, height))
        if not self._writer.isOpened():
            raise TinyverseError(
                f"OpenCV cannot write {self.path}: is its folder writable, and does this OpenCV have VP8 and ffmpeg?"
            )


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Hides what C code writes to file descriptor 2."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def picture(observations: nest.Tree, env: Any = None) -> np.ndarray | None:
    """Returns an image of the first environment: what `env` renders, else an image observation, else None.

    Args:
        observations: [n, …] per leaf; an image is uint8 [n, H, W], [n, H, W, 1 or 3] or [n, C, H, W].
    """
    if getattr(env, "render_mode", None) == "rgb_array":
        return np.asarray(env.render())
    for leaf in nest.leaves(observations):
        if leaf.dtype == np.uint8 and leaf.ndim in (3, 4):
            frame = leaf[0]
            if frame.ndim == 2 or frame.shape[-1] in (1, 3):
                return frame
            return frame.transpose(1, 2, 0) if len(frame) == 3 else frame[-1]  # the newest frame of a stack
    return None


def _checked(frame: Any) -> np.ndarray:
    if frame is None:
        raise TinyverseError('there is no frame: make the environment with render_mode="rgb_array".')
    array = np.asarray(frame)
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))
    if array.dtype != np.uint8 or not is_image or not array.size:
        raise TinyverseError(f"a frame is uint8 [H, W] or [H, W, 3], not {array.dtype}{list(array.shape)}.")
    return array


def _drawn(frame: np.ndarray) -> np.ndarray:
    """Returns [H', W', 3] BGR: enlarged without smoothing, and padded to even sides."""
    height, width = frame.shape[:2]
    factor = -(-WATCHABLE // max(height, width))
    frame = np.broadcast_to(np.atleast_3d(frame), (height, width, 3))[:, :, ::-1]
    frame = frame.repeat(factor, 0).repeat(factor, 1)
    return np.pad(frame, ((0, height * factor % 2), (0, width * factor % 2), (0, 0)))
