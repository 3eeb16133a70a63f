"""Page: what it serves is what the run says, to those it is meant for; in a real Chromium curves grow and videos play."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from tests.helpers.counting import CountingEnv
from tests.helpers.people import LENGTH, a_run, a_spec, an_agent, until
from tinyverse.cli import main as cli
from tinyverse.cli import watch as watching
from tinyverse.cli.context import RunContext
from tinyverse.core.errors import DatabaseLost, ServerError, SettingsError
from tinyverse.core.run_config import run_config
from tinyverse.database.base import Database, Worker
from tinyverse.database.memory import MemoryDatabase
from tinyverse.envs.pool import SerialPool
from tinyverse.envs.video import VideoWriter
from tinyverse.monitoring import dashboard
from tinyverse.monitoring.dashboard.frames import Frames, joined
from tinyverse.player.player import Player
from tinyverse.trainer.run_folder import RunFolder

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
CHECKOUT = Path(__file__).parents[2]
CHROMIUM = all(map(shutil.which, ("chromium", "chromedriver")))


def worker(name: str = "play-1", num_envs: int = 2, **more: Any) -> Worker:
    return Worker(name, "play", "somewhere", 11, num_envs, steps_per_second=50.0, version=3, **more)


def a_database(database: Database | None = None) -> Database:
    """A run of the counting game."""
    database = database or MemoryDatabase()
    database.create(run_config("counting", {}, a_spec()))
    return database


def play(database: Database, batches: int, name: str = "play-1", num_envs: int = 2) -> list[list[Any]]:
    """Has a player push so many batches of sessions; returns them, game by game."""
    player = Player(an_agent(), SerialPool(lambda: CountingEnv(), num_envs), LENGTH, seed=2)
    player.version, played = 3, []
    for batch in range(batches):
        played.append(player.play().sessions(name, batch * num_envs))
        database.append([session.encode() for session in played[-1]], worker=worker(name, num_envs))
    return [list(sessions) for sessions in zip(*played, strict=True)]


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "play/return": step / 10, "loss/policy": 0.5, "time/update": 0.1, **more}


def a_video(path: Path, frames: int = 30) -> None:
    with VideoWriter(path, 15) as video:
        for number in range(frames):
            video.write(np.full((64, 64, 3), 8 * number, np.uint8))


class Page:
    """A page that is served, asked as a program would."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, urlsplit(url)

    def get(self, path: str, method: str = "GET", **headers: str) -> SimpleNamespace:
        connection = http.client.HTTPConnection(self.place.hostname or "", self.place.port, timeout=10)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            body = answer.read()
            return SimpleNamespace(
                status=answer.status, headers=answer.headers, body=body, text=body.decode(errors="replace")
            )
        finally:
            connection.close()

    def json(self, path: str, **headers: str) -> Any:
        answer = self.get(path, **headers)
        assert answer.status == 200, answer
        return json.loads(answer.body, parse_constant=pytest.fail)

    def events(self, count: int, **headers: str) -> list[dict[str, Any]]:
        """The first events of the stream, fewer if it ends before."""
        connection = http.client.HTTPConnection(self.place.hostname or "", self.place.port, timeout=10)
        try:
            connection.request("GET", "/events", headers=headers)
            answer, said = connection.getresponse(), []
            while len(said) < count and (line := answer.readline().decode()):
                if line.startswith("data: "):
                    said.append(json.loads(line[6:], parse_constant=pytest.fail))
            return said
        finally:
            connection.close()


@contextmanager
def a_page(database: Any, videos: Path, context: RunContext | None = None, **options: Any) -> Iterator[Page]:
    frames = Frames(database, context and context.make_agent)

    def make(hosts: tuple[str, ...], closing: threading.Event) -> Any:
        return dashboard.application(
            database, RunFolder(videos / "counting"), frames, videos, hosts=hosts, closing=closing, **options
        )

    with dashboard.served(make, "127.0.0.1:0") as url:
        yield Page(url)


# -- what it says ----------------------------------------------------------------------------------------------------


def test_events_say_what_info_says_and_where_the_video_is(tmp_path: Path) -> None:
    database = a_database()
    for name in ("counting-v3.webm", "counting-v12.webm", "counting-1-0.webm", "other-v99.webm"):
        (tmp_path / name).write_bytes(b"video")
        os.utime(tmp_path / name, (1, len(name)))  # the newest of the right ones has the longest name
    with a_page(database, tmp_path) as seen:
        database.log_metrics(row(10, **{"loss/policy": float("nan")}))
        play(database, 1)
        first, second = seen.events(2)
    assert first["run"] == "counting" and first["workers"][0]["id"] == "play-1" and "curve" not in first
    assert first["video"] == {"seconds": 17, "version": 12, "name": "counting-v12.webm"}
    assert first["metrics"]["loss/policy"] is None and second["inserted"] == 2


def test_a_lost_database_is_said_and_found_again(tmp_path: Path) -> None:
    database = a_database()
    real, lost = database.meta, threading.Event()

    def meta() -> dict[str, str]:
        if lost.is_set():
            raise DatabaseLost("The database is gone.")
        return real()

    database.meta = meta  # type: ignore[method-assign]
    with a_page(database, tmp_path) as seen:
        lost.set()
        assert seen.events(1) == [{"problem": "The database is gone."}]
        lost.clear()
        assert seen.events(1)[0]["run"] == "counting"


def test_history_is_thinned_and_ends_with_the_newest(tmp_path: Path) -> None:
    database = a_database()
    for step in range(2 * dashboard.POINTS + 1):
        database.log_metrics(row(step))
    database.log_metrics({"step": 7, "eval/return": 2.0})
    database.log_metrics(row(9999, **{"loss/new": 1.0, "play/return_low": 3.0, "time/sample": 1.0}))
    with a_page(database, tmp_path) as seen:
        said = seen.json("/history")
    columns = said["columns"]
    assert set(columns) == {"step", "play/return", "play/return_low", "loss/policy", "loss/new"}
    assert (
        len({len(values) for values in columns.values()}) == 1
        and dashboard.POINTS / 2 < len(columns["step"]) <= dashboard.POINTS
    )
    assert columns["step"][-1] == 9999 and columns["loss/new"][-2:] == [None, 1.0]
    assert said["evaluations"] == [{"step": 7, "eval/return": 2.0}]


def test_what_the_database_has_lost_the_folder_knows(tmp_path: Path) -> None:
    database, folder = a_database(), RunFolder(tmp_path / "counting")
    folder.write_settings({})
    for step in (1, 2, 3, 4):
        folder.log(row(step))
    with a_page(database, tmp_path) as seen:
        assert seen.json("/history")["columns"]["step"] == [1, 2, 3, 4]
        database.log_metrics(row(3))  # the server came back empty, the trainer from a checkpoint
        assert seen.json("/history")["columns"]["step"] == [1, 2, 3]


def test_what_a_crash_undid_is_not_drawn(tmp_path: Path) -> None:
    database = a_database()
    for step in (1, 2, 5, 6, 3, 4, 7, 7):
        database.log_metrics(row(step))
    with a_page(database, tmp_path) as seen:
        assert seen.json("/history")["columns"]["step"] == [1, 2, 3, 4, 7, 7]


def test_history_of_a_run_that_nobody_has_created(tmp_path: Path) -> None:
    with a_page(MemoryDatabase(), tmp_path) as seen:
        assert seen.json("/history") == {"columns": {}, "evaluations": []}
        assert seen.json("/frames?player=play-1") == {"id": "", "steps": []}
        assert seen.events(1)[0]["bottleneck"] == "no trainer has created the run; start one"


def test_the_trainers_log_has_the_band() -> None:
    from tests.helpers.people import a_trainer

    trainer = a_trainer(MemoryDatabase())
    assert trainer.row()["play/return_low"] is None
    trainer.feeder.returns.extend(range(101))
    assert (trainer.row()["play/return_low"], trainer.row()["play/return_high"]) == pytest.approx((10.9, 90.1))


# -- an environment --------------------------------------------------------------------------------------------------


def test_frames_are_one_environments_without_a_gap(redis_url: str, tmp_path: Path) -> None:
    database = a_database(a_run(redis_url))
    played = play(database, 4)
    play(database, 2, "play-2", 3)
    with a_page(database, tmp_path) as seen:
        for env, sessions in enumerate(played):
            shown = seen.json(f"/frames?player=play-1&env={env}")
            rewards = np.concatenate([session.rewards for session in sessions])
            assert [step["reward"] for step in shown["steps"]] == rewards.tolist() and shown["version"] == 3
            picture = cv2.imdecode(
                np.frombuffer(base64.b64decode(shown["sheet"]["picture"].partition(",")[2]), np.uint8), 1
            )
            count = 4 * LENGTH + 1
            assert picture.shape == (-(-count // 16) * shown["sheet"]["height"], 16 * shown["sheet"]["width"], 3)
            assert seen.json(f"/frames?player=play-1&env={env}&after={shown['id']}") == {"id": "", "steps": []}
        assert seen.json("/frames?player=play-1&env=2")["id"] == "" and seen.json("/frames?player=nobody")["id"] == ""
    database.clear()


def test_frames_end_where_a_session_is_missing() -> None:
    database = a_database()
    player = Player(an_agent(), SerialPool(lambda: CountingEnv(), 1), LENGTH, seed=2)
    player.version = 3
    sessions = [player.play().sessions("play-1", number)[0] for number in range(5)]
    for number in (0, 1, 3, 4):  # 2 was dropped
        database.append([sessions[number].encode()], worker=worker(num_envs=1))
    shown = Frames(database).newest("play-1")
    assert [step["reward"] for step in shown["steps"]] == np.concatenate(
        [sessions[3].rewards, sessions[4].rewards]
    ).tolist()


@pytest.mark.parametrize("nested", [False, True])
def test_joined_sessions_are_one_longer_session(nested: bool) -> None:
    def played(length: int, count: int) -> list[Any]:
        player = Player(an_agent(nested), SerialPool(lambda: CountingEnv(nested), 1), length, seed=2)
        return [player.play().sessions("play-1", number)[0] for number in range(count)]

    parts, (whole,) = joined(played(4, 3)), played(12, 1)
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(parts.arrays[name], array, err_msg=name)


def swallow(**_: Any) -> None:
    raise DatabaseLost("The database is gone.")


def test_values_are_those_of_the_newest_weights(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyverse.core.weights import encode_weights
    from tinyverse.experiment import loader

    context = RunContext("catch", name=a_run(redis_url).run, redis=redis_url, quiet=True)
    experiment = loader.build(context.module, context.resolved({}))
    agent = experiment.agent()
    with context.connected(start=False) as database:
        database.create(run_config("catch", context.resolved({}), experiment.spec(agent)))
        player = Player(agent, experiment.pool(2), experiment.unroll_length, seed=1)
        player.version = 4
        database.append([session.encode() for session in player.play().sessions("play-1", 0)], worker=worker())
        frames = Frames(database, context.make_agent)
        before = frames.newest("play-1")
        assert (
            before["values_of"] is None and before["steps"][0]["value"] is None and before["steps"][0]["probabilities"]
        )
        weights = {name: 0 * array for name, array in agent.get_weights().items()}
        database.acquire_lease("me:1:x")
        database.put_weights(encode_weights(weights, version=5, update=0, step=0), 5, holder="me:1:x")
        after = frames.newest("play-1")
        assert after["values_of"] == 5 and {step["value"] for step in after["steps"]} == {0.0}
        assert after["steps"][0]["probabilities"] == before["steps"][0]["probabilities"], "it was drawn with these"
        with monkeypatch.context() as lost:
            lost.setattr(database, "get_weights", swallow)
            with pytest.raises(DatabaseLost):
                frames.newest("play-1")
        assert frames.newest("play-1")["values_of"] == 5
        broken = Frames(database, lambda meta: 1 / 0)
        assert broken.newest("play-1")["note"] == "no values: division by zero" and broken.newest("play-1")["steps"]
        database.clear()


# -- its door --------------------------------------------------------------------------------------------------------


def test_every_answer_forbids_foreign_script(tmp_path: Path) -> None:
    with a_page(a_database(), tmp_path) as seen:
        for path in ("/", "/page.js", "/page.css", "/uPlot.iife.min.js", "/uPlot.LICENSE", "/icon.svg", "/history"):
            answer = seen.get(path)
            assert answer.status == 200, path
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/nothing", "/../__init__.py", "/%2e%2e/__init__.py", "/video/..%2f__init__.py"):
            answer = seen.get(path)
            assert answer.status == 404 and "content-security-policy" in answer.headers, path
    html = seen_text("index.html")
    assert "<style" not in html and "style=" not in html and " on" not in html.split("<body>")[1].replace(" on ", "")
    assert not any(
        word in html + seen_text("page.js") + seen_text("page.css") for word in ("http:", "https:", "//cdn", "eval(")
    )


def seen_text(name: str) -> str:
    return (dashboard.STATIC / name).read_text()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_shows(tmp_path: Path, method: str) -> None:
    with a_page(a_database(), tmp_path) as seen:
        assert seen.get("/history", method).status == 405


@pytest.mark.parametrize(
    "path", ["/frames?env=-1", "/frames?env=x", "/frames?after=1", "/frames?after=1-", "/frames?env=" + "9" * 50]
)
def test_wrong_questions_get_a_sentence(tmp_path: Path, path: str) -> None:
    with a_page(a_database(), tmp_path) as seen:
        answer = seen.get(path)
    assert answer.status == 400 and answer.text == "env is a number from 0 on, after is the id of a session."


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:7080", 200), ("127.0.0.1", 200), ("[::1]:1", 200), ("LOCALHOST", 200), ("evil.example:7080", 421),
     ("localhost.evil.example", 421), ("", 421), ("[", 421), ("127.0.0.1:7080.evil.example", 421)],
)  # fmt: skip
def test_another_name_is_refused_on_loopback(tmp_path: Path, host: str, status: int) -> None:
    with a_page(a_database(), tmp_path) as seen:
        assert seen.get("/history", Host=host).status == status


def test_the_token_is_asked_for_everything(tmp_path: Path) -> None:
    a_video(tmp_path / "counting-v1.webm")
    with a_page(a_database(), tmp_path, token="s3cret") as seen:
        for path in (
            "/",
            "/page.js",
            "/history",
            "/events",
            "/video/counting-v1.webm",
            "/?token=",
            "/?token=s3cre",
            "/?token=s3cretx",
        ):
            answer = seen.get(path)
            assert answer.status == 401 and "s3cret" not in answer.text, path
        assert seen.get("/", Cookie=f"tinyverse-{seen.place.port}=wrong").status == 401
        assert seen.get("/", Authorization="Bearer ü".encode().decode("latin-1")).status == 401
        opened = seen.get("/?token=s3cret", Host="any.example")
        assert opened.status == 303 and opened.headers["location"] == "/"
        cookie = opened.headers["set-cookie"]
        assert (
            "HttpOnly" in cookie and "SameSite=strict" in cookie and opened.headers["referrer-policy"] == "no-referrer"
        )
        assert seen.get("/", Cookie=cookie.partition(";")[0]).status == 200
        assert seen.json("/history", Authorization="Bearer s3cret")["columns"] == {}
        assert seen.events(1, Cookie=cookie.partition(";")[0])[0]["run"] == "counting"


def test_videos_are_served_in_parts(tmp_path: Path) -> None:
    a_video(tmp_path / "counting-v1.webm")
    (tmp_path / "secret.txt").write_text("secret")
    whole = (tmp_path / "counting-v1.webm").read_bytes()
    with a_page(a_database(), tmp_path) as seen:
        answer = seen.get("/video/counting-v1.webm", Range="bytes=10-19")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (206, whole[10:20], "video/webm")
        for name in ("secret.txt", "counting-v2.webm", "other-v1.webm", "..", "counting-v1.webm/"):
            assert seen.get(f"/video/{name}").status in (404, 307), name


def test_a_link_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "counting-v1.webm").symlink_to(tmp_path / "secret")
    with a_page(a_database(), tmp_path) as seen:
        assert seen.get("/video/counting-v1.webm").status == 404
        assert seen.events(1)[0]["video"] is None


def test_who_asks_nothing_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_page(a_database(), tmp_path) as seen, contextlib.ExitStack() as stack:
        place = (seen.place.hostname or "", seen.place.port or 0)
        silent = [stack.enter_context(socket.create_connection(place)) for _ in range(2 * dashboard.SILENT)]
        for connection in silent[::2]:
            with contextlib.suppress(OSError):  # the oldest have been given up
                connection.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert seen.get("/history").status == 200
    monkeypatch.setattr(dashboard, "HEAD_SECONDS", 0.2)
    with (
        a_page(a_database(), tmp_path) as seen,
        socket.create_connection((seen.place.hostname, seen.place.port)) as one,
    ):
        one.settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert one.recv(1) == b""


def test_who_is_not_let_in_is_sent_away(tmp_path: Path) -> None:
    with a_page(a_database(), tmp_path, token="secret-words") as seen:
        answer = seen.get("/")
        assert answer.status == 401 and answer.headers["connection"] == "close"


def test_errors_go_to_the_page_without_their_tracebacks(tmp_path: Path) -> None:
    database = a_database()
    database.log_error({"when": "now", "role": "play", "host": "h", "error": "KeyError", "traceback": "x" * 10_000})
    with a_page(database, tmp_path) as seen:
        assert seen.events(1)[0]["errors"] == [
            {"when": "now", "role": "play", "host": "h", "error": "KeyError", "traceback": ""}
        ]


def test_a_short_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVERSE_PAGE_TOKEN", "x")
    with pytest.raises(SettingsError, match="TINYVERSE_PAGE_TOKEN has 1 character"):
        watching.watch.callback(RunContext("catch", "watched"), "0.0.0.0:0", False)  # type: ignore[misc]


@pytest.mark.parametrize("listen", ["7080", "localhost", "localhost:x", "::1:80", "a:99999", "a:1\n", "", "u@h/x:1"])
def test_an_address_is_host_and_port(listen: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        dashboard.address(listen)


def test_loopback_is_what_only_this_machine_reaches() -> None:
    assert all(map(dashboard.is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(dashboard.is_loopback, ("0.0.0.0", "::", "10.0.0.5", "example.org", "localhost.example.org")))
    assert dashboard.address("[::1]:80") == ("::1", 80)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ServerError, match="Choose another place: --listen HOST:PORT"):
            with dashboard.served(lambda hosts, closing: None, f"127.0.0.1:{taken.getsockname()[1]}"):
                pass


# -- the verb --------------------------------------------------------------------------------------------------------


def watch(redis_url: str, folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    words = ("catch", "watch", "--name", "watched", *words)
    environment["TINYVERSE_REDIS_URL"] = redis_url  # not among the words, which everybody can read
    return subprocess.Popen(
        [sys.executable, "-m", "tinyverse", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]), **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "address"),
    [(["--listen", "127.0.0.1:0"], "open http://127.0.0.1:"), (["--listen", "0.0.0.0:0"], "open http://0.0.0.0:")],
)
def test_watch_says_where_and_ends_when_it_is_stopped(
    redis_url: str, tmp_path: Path, words: list[str], address: str
) -> None:
    command = watch(redis_url, tmp_path, *words, TINYVERSE_PAGE_TOKEN="of-my-own")
    try:
        line = command.stdout.readline()  # type: ignore[union-attr]
        assert line.startswith(address), (line, command.stderr.read() if not line else "")  # type: ignore[union-attr]
        assert ("?token=of-my-own " in line) == ("0.0.0.0" in address)
        seen = Page(line.split()[1].replace("0.0.0.0", "127.0.0.1"))
        listening = threading.Thread(target=lambda: seen.events(99), daemon=True)  # who looks on does not hold it up
        if "0.0.0.0" not in address:
            assert seen.events(1)[0]["run_id"] == ""
            listening.start()
        else:
            assert seen.get("/").status == 401
        command.terminate()
        assert command.wait(20) == 0
        if listening.ident:
            listening.join(10)
            assert not listening.is_alive()
    finally:
        command.kill()
        _, said = command.communicate()
    assert said == ""


def test_watch_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(SettingsError, match=r"watch needs uvicorn: pip install 'tinyverse\[page\]'"):
        watching.watch.callback(RunContext("catch"), watching.LISTEN, True)


def test_options_reach_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(watching.watch, "callback", lambda context, **options: calls.append(options))
    for words in ([], ["--listen", "0.0.0.0:80", "--no-values"]):
        with pytest.raises(SystemExit):
            cli.main(["catch", "watch", *words])
    assert calls == [{"listen": watching.LISTEN, "values": True}, {"listen": "0.0.0.0:80", "values": False}]


def test_looking_costs_the_database_no_word(redis_url: str, tmp_path: Path) -> None:
    database = a_database(a_run(redis_url))
    play(database, 2)

    def everything() -> Any:
        return database.meta(), database.read("0-0", 1000), database.counters(), len(database.workers())

    before = everything()
    with a_page(database, tmp_path) as seen:
        seen.events(2), seen.json("/history"), seen.json("/frames?player=play-1")
    assert everything() == before
    database.clear()


@pytest.mark.slow
def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    copy = shutil.copytree(
        CHECKOUT, tmp_path / "copy", ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "records")
    )
    subprocess.run([*command, str(copy)], check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name.rpartition("/")[2] for name in zipfile.ZipFile(wheel).namelist() if "/dashboard/static/" in name}
    assert inside == {path.name for path in dashboard.STATIC.iterdir()}


# -- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A headless Chromium that can reach this machine only."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,1000"):
        options.add_argument(f"--{word}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def text_of(driver: Any, selector: str) -> str:
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="chromium or its driver is not installed")
def test_the_page_lives_in_a_browser(chromium: Any, tmp_path: Path) -> None:
    database = a_database()
    for step in range(1, 6):
        database.log_metrics(row(step, **{"play/return_low": 0.0, "play/return_high": 1.0, "replay/lag": 2.0}))

    def points(chart: str) -> int:
        return int(chromium.execute_script(f"return document.querySelector('#{chart} .plot').dataset.points ?? 0"))

    def workers() -> list[str]:
        return chromium.execute_script("return [...document.querySelectorAll('#rows tr')].map((row) => row.dataset.id)")

    with a_page(database, tmp_path) as seen:
        chromium.get(seen.url)
        until(lambda: points("return") == 5)
        assert "Nobody plays." in text_of(chromium, "#about") and workers() == []

        database.log_metrics(row(100, **{"play/return": 77.5}))
        until(lambda: all(points(chart) == 6 for chart in ("return", "throughput", "lag", "losses")))
        assert "77.5" in text_of(chromium, "#return .legend")

        play(database, 3)
        until(lambda: workers() == ["play-1"])
        until(
            lambda: text_of(chromium, "#step")[:6] in [f"step {number}" for number in range(2, 10)]
        )  # it runs by itself
        bright = "const c = document.querySelector('#screen'); return Math.max(...c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 < 3))"
        until(lambda: chromium.execute_script(bright) > 0)
        database.beat(worker("<b>play-2</b>", waits_for="<img src=x onerror=alert(1)>"))
        until(lambda: len(workers()) == 2)
        assert chromium.execute_script("return document.querySelectorAll('#rows img, #rows b').length") == 0
        database.leave("play-1"), database.leave("<b>play-2</b>")
        until(lambda: workers() == [])
        assert "has left" in text_of(chromium, "#about")

        a_video(tmp_path / "counting-v3.webm")
        ready = "const v = document.querySelector('video'); return !v.hidden && v.readyState >= 1"
        until(lambda: chromium.execute_script(ready))
        chromium.execute_script("document.querySelector('video').play()")
        until(lambda: chromium.execute_script("return document.querySelector('video').currentTime > 0.2"))

        # by keyboard: everything that can be pressed is reached, and Pause is pressed by it
        keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
        chromium.execute_script("document.querySelector('#problem').focus(); scrollTo(0, 0)")
        reached = set()
        for _ in range(30):
            chromium.switch_to.active_element.send_keys(keys.TAB)
            focused = chromium.switch_to.active_element
            reached.add(focused.get_attribute("id") or focused.text.partition(" ")[0])
        assert {"player", "env", "speed", "pause", "scrub", "video", "mean", "policy", "updates"} <= reached
        pause = chromium.find_element("id", "pause")
        pressed = pause.get_attribute("aria-pressed")
        pause.send_keys(keys.SPACE)
        assert pause.get_attribute("aria-pressed") != pressed

        # on a phone nothing is wider than the screen; in the dark the ground is dark
        size = {"width": 375, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        until(lambda: chromium.execute_script("return document.documentElement.scrollWidth <= 375"))
        ground = "return getComputedStyle(document.body).backgroundColor"
        for scheme, colour in (("dark", "rgb(17, 21, 28)"), ("light", "rgb(246, 247, 249)")):
            features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
            assert chromium.execute_script(ground) == colour
        assert [entry["message"] for entry in chromium.get_log("browser")] == []


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="chromium or its driver is not installed")
def test_a_browser_shows_the_token_once(chromium: Any, tmp_path: Path) -> None:
    with a_page(a_database(), tmp_path, token="s3cret") as seen:
        chromium.get(seen.url + "?token=s3cret")
        until(lambda: text_of(chromium, "#run") == "counting")
        assert chromium.current_url == seen.url and "s3cret" not in chromium.execute_script("return document.cookie")
