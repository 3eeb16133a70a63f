"""VideoWriter: what is written can be read back, and what cannot be written says so."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinyverse.core.errors import TinyverseError
from tinyverse.envs.video import VideoWriter


def decoded(path: Path) -> tuple[np.ndarray, float]:
    """[frames, H, W, 3] RGB, and frames per second."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            return np.stack(frames), capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[:, :, ::-1])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((35, 51, 3), (246, 358)), ((84, 84, 3), (336, 336)), ((210, 160, 3), (420, 320)), ((401, 333, 3), (402, 334))],
)
def test_colour_frames_come_back(tmp_path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 200)]
    with VideoWriter(tmp_path / "new" / "game.webm", fps=15) as video:
        for colour in colours:
            frame = np.zeros(shape, np.uint8)
            frame[: shape[0] // 2] = colour  # the upper half
            video.write(frame)
    frames, fps = decoded(tmp_path / "new" / "game.webm")
    assert frames.shape == (4, *size, 3) and fps == 15
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame[size[0] // 4, size[1] // 2].astype(int) - colour).max() < 25
        assert frame[size[0] * 3 // 4, size[1] // 2].max() < 25
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["game.webm"], "a temporary file was left"


@pytest.mark.parametrize("shape", [(84, 84), (84, 84, 1)])
def test_grey_frames_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with VideoWriter(tmp_path / "grey.webm") as video:
        for level in (40, 120, 220):
            video.write(np.full(shape, level, np.uint8))
    frames, fps = decoded(tmp_path / "grey.webm")
    assert fps == 30
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [40, 120, 220], atol=8)


def test_frames_are_read_and_not_changed(tmp_path: Path) -> None:
    frame = np.full((32, 32, 3), 7, np.uint8)
    frame.flags.writeable = False
    with VideoWriter(tmp_path / "a.webm") as video:
        video.write(frame)
    assert video.frames == 1


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (None, "render_mode"),
        (np.zeros((8, 8, 3), np.float32), r"not float32\[8, 8, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"not uint8\[8, 8, 4\]"),
        (np.zeros((0, 8), np.uint8), r"not uint8\[0, 8\]"),
        (np.zeros((9, 8, 3), np.uint8), r"frame 1 is \[9, 8, 3\]"),
    ],
)
def test_what_is_no_frame_is_refused_and_leaves_nothing(tmp_path: Path, frame: Any, words: str) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "a.webm") as video:
            video.write(np.zeros((8, 8, 3), np.uint8))
            video.write(frame)

    with pytest.raises(TinyverseError, match=words):
        write()
    assert not list(tmp_path.iterdir())


def test_no_frames_no_folder_and_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(TinyverseError, match="no frame was written"), VideoWriter(tmp_path / "a.webm"):
        pass
    with pytest.raises(TinyverseError, match=r"Call it a\.webm"):
        VideoWriter(tmp_path / "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(TinyverseError, match="cannot be made a folder"):
        VideoWriter(tmp_path / "file" / "a.webm").write(np.zeros((8, 8), np.uint8))


def test_opencvs_silence_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = VideoWriter(tmp_path / "a.webm")
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *letters: 0)
    with pytest.raises(TinyverseError, match="cannot write"):
        video.write(np.zeros((8, 8), np.uint8))
    monkeypatch.undo()
    video = VideoWriter(tmp_path / "b.webm")
    video.write(np.zeros((8, 8), np.uint8))
    video._partial.unlink()
    with pytest.raises(TinyverseError, match="Is the disk full"):
        video.close()
