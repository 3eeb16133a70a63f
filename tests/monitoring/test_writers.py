"""Writers: every place gets every row, arrays as histograms, videos as videos; none of them can end training."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.people import until
from tinyverse.cli import main as cli
from tinyverse.core.errors import DatabaseLost, SettingsError
from tinyverse.database.memory import MemoryDatabase
from tinyverse.envs.video import VideoWriter
from tinyverse.monitoring import writers
from tinyverse.monitoring.writers import Prometheus, TensorBoard, TrainLog, open_writer
from tinyverse.trainer.run_folder import RunFolder

ROW = {"step": 100, "seconds": 1.5, "play/return": None, "loss/total": 0.5}
ARRAYS = {"replay/lags": np.array([0, 1, 1, 5])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("runs/environment")
    folder.write_settings({"experiment": "environment", "settings": {"learning_rate": 1e-3}})
    return folder


def a_video(path):
    with VideoWriter(path, fps=10) as video:
        for shade in range(5):
            video.write(np.full((64, 96, 3), 40 * shade, np.uint8))
    return Path(path)


def test_tensorboard_has_curves_histograms_and_videos(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoard(folder)
    writer.write(ROW | ARRAYS | {"empty": np.zeros(0)})
    writer.video("eval/video", a_video("a.webm"), 100)
    writer.close()
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [(100, 0.5)]
    (event,) = events.Histograms("replay/lags")
    assert (event.histogram_value.num, event.histogram_value.sum, event.histogram_value.max) == (4, 7, 5)
    (image,) = events.Images("eval/video")
    assert image.encoded_image_string[:4] == b"GIF8" and image.width > image.height
    assert events.Tags()["histograms"] == ["replay/lags"]


def test_a_place_that_fails_ends_nothing(folder, caplog):
    class Full:
        closed = False

        def write(self, row):
            raise OSError("no space")

        def close(self):
            self.closed = True

    class Kept(Full):
        rows = []

        def write(self, row):
            self.rows.append(row)

    full, kept = Full(), Kept()
    log = TrainLog(lambda: dict(ROW), folder, MemoryDatabase(), writers=[full, kept], arrays=lambda: ARRAYS)
    with caplog.at_level(logging.WARNING):
        log.close()
    assert full.closed and kept.closed and "Full took no row (no space)" in caplog.text
    assert kept.rows[0]["replay/lags"] is ARRAYS["replay/lags"]
    assert "replay/lags" not in folder.rows()[0]  # a row of metrics.jsonl is numbers


def test_wandb_writes_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (100, 200):  # the second goes on with the first
        writer = open_writer("wandb", folder)
        writer.write({**ROW, **ARRAYS, "step": step})
        writer.close()
        identity = (folder.path / "wandb-id").read_text()
    files = list((folder.path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    for file in files:  # a process of wandb's writes it, and ours does not wait for that one
        until(lambda file=file: b"loss/total" in file.read_bytes() and b"learning_rate" in file.read_bytes(), 30)


@pytest.mark.filterwarnings("default")
def test_mlflow_writes_to_a_file(folder, monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    for step in (100, 200):
        writer = open_writer("mlflow", folder)
        writer.write({**ROW, **ARRAYS, "step": step})
        writer.close()
    client = mlflow.MlflowClient()
    run = client.get_run((folder.path / "mlflow-id").read_text())
    assert run.data.params == {"learning_rate": "0.001"} and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss/total")] == [
        (100, 0.5),
        (200, 0.5),
    ]
    assert run.data.metrics["replay/lags"] == 1.75


def test_what_is_not_there_is_said(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SettingsError, match=r"--track wandb: wandb is not installed: pip install 'tinyverse\[wandb\]'"):
        open_writer("wandb", folder)
    with pytest.raises(SettingsError, match="--track wandbb: there are wandb, mlflow"):
        open_writer("wandbb", folder)


def get(port, path="/metrics"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_prometheus_reads_the_newest_row():
    served = Prometheus("0", {"run": 'a "environment"\\'})
    try:
        assert get(served.port)[1] == ""
        served.write({"step": 1, "loss/total": 9.0})
        served.write(ROW | ARRAYS | {"nan": float("nan")})
        kind, text = get(served.port)
        assert kind.startswith("text/plain; version=0.0.4")
        assert text.splitlines() == [
            line
            for metric, name, value in [("step", "step", "100.0"), ("seconds", "seconds", "1.5"), ("loss_total", "loss/total", "0.5")]
            for line in (
                f"# HELP tinyverse_{metric} {name}",
                f"# TYPE tinyverse_{metric} gauge",
                f'tinyverse_{metric}{{run="a \\"environment\\"\\\\"}} {value}',
            )
        ]  # fmt: skip
        assert served._server.server_address[0] == "127.0.0.1", "without a host only this machine reaches it"
        with pytest.raises(SettingsError, match=r"--metrics-port .* cannot be listened on: Address already in use"):
            Prometheus(str(served.port), {})
    finally:
        served.close()
    with pytest.raises(urllib.error.URLError):
        get(served.port)


def test_who_asks_prometheus_nothing_takes_few_threads_and_not_for_long(monkeypatch):
    served, before = Prometheus("0", {}), threading.active_count()
    try:
        served._server.RequestHandlerClass.timeout = 0.5
        with contextlib.ExitStack() as stack:
            for _ in range(3 * writers.MOST_ASKING):
                stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            assert threading.active_count() <= before + writers.MOST_ASKING
            until(lambda: threading.active_count() <= before)
            assert get(served.port)[0].startswith("text/plain")
    finally:
        served.close()


@pytest.mark.parametrize("place", ["many", "", "70000", "host:"])
def test_no_port_is_said(place):
    with pytest.raises(SettingsError, match="give a port, or HOST:PORT"):
        Prometheus(place, {})


def test_a_trainer_serves_and_writes_its_lags(folder, capsys, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pages = []
    close = Prometheus.close
    monkeypatch.setattr(Prometheus, "close", lambda self: (pages.append(get(self.port)[1]), close(self)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["catch", "local", "-n", "4", "-q", "--metrics-port", "0"])
    assert ended.value.code == 0
    assert 'tinyverse_update{run="catch"} 4.0' in pages[0]
    events = EventAccumulator("runs/catch/tensorboard")
    events.Reload()
    (event,) = events.Histograms("replay/lags")
    assert event.histogram_value.num == 4 * 32 and event.histogram_value.max == 0  # in lockstep nothing is late
    with pytest.raises(SystemExit) as ended:
        cli.main(["catch", "local", "-n", "4", "-q", "--track", "nowhere"])
    assert ended.value.code == 2 and "--track nowhere: there are" in capsys.readouterr().err
    assert json.loads(Path("runs/catch/metrics.jsonl").read_text().splitlines()[-1])["update"] == 4


class Rows:
    """Numbers a trainer could give."""

    def __init__(self):
        self.step = 0

    def __call__(self):
        self.step += 100
        return {"update": self.step // 10, "step": self.step, "play/return": None, "loss/total": 1 / self.step}


def test_the_log_is_read_again_from_file_database_and_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    database, folder = MemoryDatabase(), RunFolder(tmp_path / "run")
    folder.write_settings({})
    log = TrainLog(Rows(), folder, database, seconds=1000)
    log.turn()
    assert folder.rows() == []  # the interval has not passed
    log.write()
    log.close()
    rows = folder.rows()
    assert [row["step"] for row in rows] == [100, 200]
    assert rows[0]["play/return"] is None
    assert log.latest == rows[-1]
    assert database.metrics() == rows
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss/total")
    assert [(event.step, event.value) for event in scalars] == [(100, pytest.approx(0.01)), (200, pytest.approx(0.005))]
    assert "play/return" not in events.Tags()["scalars"]


def test_the_clock_goes_on_after_a_restart(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_settings({})
    folder.log({"seconds": 5000.0, "step": 1})
    log = TrainLog(Rows(), folder, MemoryDatabase(), seconds=0)
    log.turn()
    log.close()
    assert all(row["seconds"] >= 5000.0 for row in folder.rows())
    assert len(folder.rows()) == 3


def test_a_lost_database_does_not_end_the_log(tmp_path):
    class Lost(MemoryDatabase):
        def log_metrics(self, row):
            raise DatabaseLost("gone")

    folder = RunFolder(tmp_path)
    folder.write_settings({})
    log = TrainLog(Rows(), folder, Lost())
    log.write()
    log.close()
    assert len(folder.rows()) == 2
