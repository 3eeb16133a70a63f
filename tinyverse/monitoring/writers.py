"""Writers: places for a trainer's rows beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow, Prometheus.

`TrainLog` writes a row to all of them each interval. `open_writer` refuses what is not installed before training starts.
"""

import contextlib
import importlib.util
import io
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tinyverse.core.errors import DatabaseError, SettingsError
from tinyverse.core.timing import Ticker
from tinyverse.database.base import Database
from tinyverse.trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)

MOST_ASKING = 32  # connections to the metrics port at once
VIDEO_FRAMES = 300  # of a video shown by TensorBoard, as a GIF


class Writer(Protocol):
    """A place for rows. A lost place must not end training: callers catch what it raises."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes numbers by name, `step` among them. Arrays become histograms where the place has them."""

    def close(self) -> None: ...


class TensorBoard:
    """Curves, histograms and videos in the run's folder: `tensorboard --logdir runs`."""

    def __init__(self, folder: RunFolder, part: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, for trainers only

        self._events = SummaryWriter(str(folder.path / "tensorboard" / part))

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _arrays(row).items():
            self._events.add_histogram(name, value, row["step"])
        for name, value in row.items():
            if value is not None and not isinstance(value, np.ndarray):
                self._events.add_scalar(name, value, row["step"])

    def video(self, name: str, path: Path, step: int) -> None:
        """Shows the first frames of a .webm, as a GIF."""
        import cv2
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        video, frames, gif = cv2.VideoCapture(str(path)), list[Any](), io.BytesIO()
        while len(frames) < VIDEO_FRAMES and (read := video.read())[0]:
            frames.append(Image.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)))
        milliseconds = 1000 / (video.get(cv2.CAP_PROP_FPS) or 30)
        video.release()
        if not frames:
            raise SettingsError(f"{path} is no video that can be read.")
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
        width, height = frames[0].size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue())
        self._events._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WandB:
    """Weights & Biases. A run that goes on here goes on there. WANDB_MODE=offline writes to runs/NAME/wandb only."""

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        self._wandb: Any = wandb  # typed where it is installed, and not alike in all versions
        about = folder.settings()
        identity = folder.path / "wandb-id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=about.get("experiment", "tinyverse"), name=folder.path.name, config=about.get("settings", {}),
            dir=str(folder.path), id=identity.read_text(), resume="allow",
        )  # fmt: skip

    def write(self, row: Mapping[str, Any]) -> None:
        histograms = {name: self._wandb.Histogram(value) for name, value in _arrays(row).items()}
        self._run.log(_numbers(row) | histograms, step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI. A run that goes on here goes on there. It has no histograms: it gets their means."""

    def __init__(self, folder: RunFolder) -> None:
        from mlflow import MlflowClient

        about, identity = folder.settings(), folder.path / "mlflow-id"
        self._client = MlflowClient()
        if not identity.exists():
            name = about.get("experiment", "tinyverse")
            found = self._client.get_experiment_by_name(name)
            number = found.experiment_id if found else self._client.create_experiment(name)
            run = self._client.create_run(number, run_name=folder.path.name)
            identity.write_text(run.info.run_id)
            for setting, value in about.get("settings", {}).items():
                self._client.log_param(run.info.run_id, setting, value)
        self._run = identity.read_text()
        self._client.update_run(self._run, status="RUNNING")

    def write(self, row: Mapping[str, Any]) -> None:
        means = {name: float(value.mean()) for name, value in _arrays(row).items()}
        for name, value in (_numbers(row) | means).items():
            self._client.log_metric(self._run, name, value, step=int(row["step"]))

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Prometheus:
    """Serves the newest row's numbers as gauges on `/metrics`, until it is closed: `train --metrics-port 9100`.

    Args:
        place: "9100", which only this machine reaches, or "HOST:PORT".
    """

    def __init__(self, place: str, labels: Mapping[str, str]) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        host, _, port = place.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise SettingsError(f"--metrics-port {place}: give a port, or HOST:PORT for other machines to reach it.")
        self._labels, self._row = dict(labels), dict[str, Any]()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
        except OSError as error:
            raise SettingsError(f"--metrics-port {place} cannot be listened on: {error.strerror}.") from None
        server: Any = self._server
        most = threading.active_count() + MOST_ASKING  # each asks in a thread, which silence holds for 5 seconds only
        server.RequestHandlerClass = type("Handler", (server.RequestHandlerClass,), {"timeout": 5})
        server.verify_request = lambda *_: threading.active_count() < most
        self.port = self._server.server_port

    def collect(self) -> Iterator[Any]:
        """A gauge for each of the newest row's numbers. The registry calls this for every request."""
        from prometheus_client.core import GaugeMetricFamily

        for name, value in _numbers(self._row).items():
            metric = "tinyverse_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
            gauge = GaugeMetricFamily(metric, name, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge

    def write(self, row: Mapping[str, Any]) -> None:
        self._row = dict(row)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


WRITERS: dict[str, Callable[[RunFolder], Writer]] = {"wandb": WandB, "mlflow": MLflow}


def check_writer(name: str) -> None:
    """Raises SettingsError where there is no writer of this name, or what it wants is not installed."""
    if name not in WRITERS:
        raise SettingsError(f"--track {name}: there are {', '.join(WRITERS)}.")
    if importlib.util.find_spec(name) is None:
        raise SettingsError(f"--track {name}: {name} is not installed: pip install 'tinyverse[{name}]'.")


def open_writer(name: str, folder: RunFolder) -> Writer:
    """The writer of this name. Raises SettingsError where it cannot be used."""
    check_writer(name)
    try:
        return WRITERS[name](folder)
    except Exception as error:  # theirs, of any kind: no account, no network, another schema
        first = (str(error).splitlines() or [""])[0]
        raise SettingsError(f"--track {name} cannot be used: {type(error).__name__}: {first}.") from error


class TrainLog:
    """Writes a row of the trainer's numbers each interval: to metrics.jsonl, the database and the writers.

    Args:
        row: makes the row.
        arrays: makes what writers get beside the row.
    """

    def __init__(
        self, row: Callable[[], dict[str, Any]], folder: RunFolder, database: Database, *, seconds: float = 10.0,
        writers: Sequence[Writer] = (), arrays: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:  # fmt: skip
        self.latest: dict[str, Any] = {}
        self._row, self._folder, self._database = row, folder, database
        self._ticker = Ticker(seconds, later=True)
        # on the monotonic clock: as if the run had never been interrupted
        self._began = time.monotonic() - max((row.get("seconds", 0.0) for row in folder.rows()), default=0.0)
        self._writers, self._arrays = list(writers), arrays

    def turn(self) -> None:
        """Writes if the interval has passed."""
        if self._ticker.due():
            self.write()

    def write(self) -> None:
        self.latest = {"seconds": round(time.monotonic() - self._began, 1), **self._row()}
        try:
            self._folder.log(self.latest)
            if not any(isinstance(writer, TensorBoard) for writer in self._writers):
                self._writers.append(TensorBoard(self._folder))
        except OSError as error:
            logger.warning("%s/ cannot be written to (%s). Training goes on.", self._folder.path, error)
        with contextlib.suppress(DatabaseError):  # the files have it
            self._database.log_metrics(self.latest)
        whole = {**self.latest, **self._arrays()}
        for writer in self._writers:
            try:
                writer.write(whole)
            except Exception as error:  # theirs, of any kind; the files have the row
                logger.warning("%s took no row (%s). Training goes on.", type(writer).__name__, error)

    def close(self, last: bool = True) -> None:
        """Writes the last row, unless another trainer writes into the folder by now, and closes."""
        if last:
            self.write()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.close()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def _arrays(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: value for name, value in row.items() if isinstance(value, np.ndarray) and value.size}
