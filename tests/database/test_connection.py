"""The whole contract on a cluster of three nodes, behind Sentinels, and through TLS with certificates."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.helpers.database_contract import DatabaseContract, read_all
from tests.helpers.people import a_trainer
from tests.trainer.test_trainer import push, some_sessions
from tinyverse.core.errors import DatabaseError, DatabaseLost, ServerError, SettingsError
from tinyverse.database.base import Database
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase, list_runs
from tinyverse.database.schema import Keys
from tinyverse.database.server import find_server
from tinyverse.database.server_config import find_binary
from tinyverse.database.users import OLDEST, make_users

SLOTS = 16384


def free_port() -> int:
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        if port < 55_000:  # a node of a cluster takes the port 10,000 above, too
            return port


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    ends = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if found := true():
                return found
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


class Servers:
    """Real servers with these configurations, one each, in a folder of their own."""

    def __init__(self, *settings: str) -> None:
        self.settings = settings
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Servers:
        self.folder = Path(tempfile.mkdtemp(dir="/tmp"))
        for number, text in enumerate(self.settings):
            home = self.folder / str(number)
            home.mkdir()
            (home / "server.conf").write_text(f'dir "{home}"\nsave ""\nbind 127.0.0.1\n{text}\n')
            self.start(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self.processes):
            self.kill(number)
        shutil.rmtree(self.folder)

    def start(self, number: int) -> None:
        """Starts one, also again, with what it has on its disk."""
        sentinel = ["--sentinel"] if "sentinel monitor" in self.settings[number] else []
        command = [find_binary()[0], str(self.folder / str(number) / "server.conf"), *sentinel]
        self.processes[number] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, number: int) -> None:
        """kill -9."""
        process = self.processes.pop(number)
        process.kill()
        process.wait()


def admin(port: int, **options: Any) -> redis.Redis:
    return redis.Redis(port=port, protocol=2, socket_timeout=5, **options)


# a cluster


@pytest.fixture(scope="module")
def ports() -> Iterator[list[int]]:
    """Three nodes, each with a third of the slots."""
    ports = [free_port() for _ in range(3)]
    with Servers(*map(cluster_node, ports)):
        make_cluster(ports)
        yield ports


def cluster_node(port: int) -> str:
    """The configuration of a node."""
    return f"port {port}\ncluster-enabled yes\ncluster-node-timeout 2000"


def make_cluster(ports: list[int]) -> None:
    """Three nodes that run become a cluster, each with a third of the slots."""
    for index, port in enumerate(ports):
        until(lambda port=port: admin(port).ping())
        first, end = index * SLOTS // 3, (index + 1) * SLOTS // 3
        admin(port).execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
        admin(port).execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
    for port in ports:
        until(lambda port=port: b"cluster_state:ok" in raw(port, "CLUSTER", "INFO"))
        until(lambda port=port: b"cluster_known_nodes:3" in raw(port, "CLUSTER", "INFO"))


def raw(port: int, *words: Any) -> bytes:
    """What a node answers, as it says it."""
    client = admin(port)
    client.response_callbacks.clear()
    said = client.execute_command(*words)
    return said if isinstance(said, bytes) else str(said).encode()


@pytest.fixture(scope="module")
def cluster_url(ports: list[int]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/"


class TestOnACluster(DatabaseContract):
    @pytest.fixture
    def database(self, cluster_url: str) -> Iterator[Database]:  # type: ignore[override]
        made = RedisDatabase(cluster_url, f"test-{secrets.token_hex(4)}")
        yield made
        made.clear()
        made.close()


def test_runs_lie_on_several_nodes_and_are_listed(cluster_url: str, ports: list[int]) -> None:
    names = [f"run-{number}" for number in range(12)]
    for name in names:
        RedisDatabase(cluster_url, name).create({})
    held = [sum(raw(port, "EXISTS", Keys(name).meta) == b"1" for name in names if owner(port, name)) for port in ports]
    assert sum(held) == 12 and all(held)
    assert set(names) <= set(list_runs(cluster_url))
    for name in names:
        RedisDatabase(cluster_url, name).clear()


def owner(port: int, run: str) -> bool:
    try:
        admin(port).exists(Keys(run).meta)
    except redis.exceptions.MovedError:
        return False
    return True


def test_any_node_will_do_and_dead_ones_are_passed_over(ports: list[int]) -> None:
    for port in ports:
        database = RedisDatabase(f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}/", "anywhere")
        assert database.state().run_id == ""
        database.close()
    assert find_server(f"redis+cluster://127.0.0.1:{ports[0]}/").source == "--redis"
    with pytest.raises(ServerError, match="does not answer.*refused"):
        find_server("redis+cluster://127.0.0.1:1,127.0.0.1:2/")


def test_a_run_that_moves_is_found_again(cluster_url: str, ports: list[int]) -> None:
    database = RedisDatabase(cluster_url, "moving")
    assert database.append([b"x"]).inserted == 1
    database.clear()  # an empty slot moves at once
    slot = int(raw(ports[0], "CLUSTER", "KEYSLOT", Keys("moving").meta))
    there = next(port for port in ports if not owner(port, "moving"))
    name = raw(there, "CLUSTER", "MYID").decode()
    for port in [there, *ports]:
        admin(port).execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)
    with pytest.raises(DatabaseLost, match="moving the run to another node"):
        database.append([b"y"])
    states = []

    def appends() -> bool:  # the nodes tell each other who has the slot, at their own pace
        with contextlib.suppress(DatabaseLost):
            states.append(database.append([b"z"]))
        return bool(states)

    until(appends)
    assert states[0].inserted == 1 and read_all(database) == [b"z"]
    assert owner(there, "moving")
    database.clear()


def test_what_is_no_cluster_or_one_by_another_name_is_told_in_a_sentence(redis_url: str, ports: list[int]) -> None:
    port = free_port()
    with Servers(f"port {port}"):
        until(lambda: admin(port).ping())
        with pytest.raises(ServerError, match="cluster support disabled"):
            find_server(f"redis+cluster://127.0.0.1:{port}/")
    elsewhere = next(port for port in ports if not owner(port, "moving"))
    with pytest.raises(DatabaseError, match="node of a cluster.*redis.cluster://") as caught:
        RedisDatabase(f"redis://127.0.0.1:{elsewhere}/", "moving").state()
    assert not isinstance(caught.value, DatabaseLost)


@pytest.mark.skipif(find_binary()[1] < OLDEST, reason="this server cannot keep roles apart")
def test_roles_on_a_cluster(cluster_url: str) -> None:
    urls = make_users("pong", cluster_url.split(",")[0])  # one node knows the others
    trainer, player = RedisDatabase(urls["trainer"], "pong"), RedisDatabase(urls["player"], "pong")
    assert trainer.create({"spec": "s"})["spec"] == "s"
    assert player.append([b"x"]).inserted == 1 and read_all(trainer) == [b"x"]
    with pytest.raises(DatabaseError, match="does not permit"):
        player.acquire_lease("me:1:x")
    trainer.clear()


def test_a_trainer_learns_and_publishes_on_a_cluster(cluster_url: str) -> None:
    database = RedisDatabase(cluster_url, f"test-{secrets.token_hex(4)}")
    trainer = a_trainer(database)
    trainer.join()
    push(database, some_sessions(6))
    trainer.feed()
    assert [trainer.step() for _ in range(4)] == [True, True, True, False]
    trainer.publish(trainer.snapshot())
    trainer.leave()
    assert database.get_weights()[0] == 1 and database.state().update == 3
    database.clear()
    database.close()


# sentinels


def test_the_server_that_sentinels_name() -> None:
    port, watch, dead = free_port(), free_port(), free_port()
    with Servers(
        f"port {port}\nrequirepass sesame",
        f"port {watch}\nsentinel monitor pong 127.0.0.1 {port} 1\nsentinel auth-pass pong sesame",
    ):
        until(lambda: admin(port, password="sesame").ping())
        until(lambda: admin(watch).execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "pong"))
        url = f"redis+sentinel://:sesame@127.0.0.1:{dead},127.0.0.1:{watch}/pong"
        assert "sesame" not in str(find_server(url))
        database = RedisDatabase(url, "x")
        DatabaseContract().fill(database)
        assert database.state().inserted > 0
        database.close()
        with pytest.raises(ServerError, match="does not answer"):
            find_server(f"redis+sentinel://:sesame@127.0.0.1:{watch}/other")


# TLS


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=ours",
        "-days",
        "2",
    )
    for who in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}"
        )
        (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        openssl("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{who}.crt", "-days", "2", "-extfile", "names")  # fmt: skip
    port = free_port()
    files = (
        f"tls-cert-file {tmp_path}/server.crt\ntls-key-file {tmp_path}/server.key\ntls-ca-cert-file {tmp_path}/ca.crt"
    )
    with Servers(f"port 0\ntls-port {port}\n{files}"):
        ours = f"ssl_ca_certs={tmp_path}/ca.crt&ssl_certfile={tmp_path}/client.crt&ssl_keyfile={tmp_path}/client.key"
        url = f"rediss://127.0.0.1:{port}/0?{ours}"
        try:
            until(lambda: connect(url).ping(), 5)
        except AssertionError:
            pytest.skip("this server was built without TLS")
        database = RedisDatabase(url, "x")
        assert database.append([b"x"]).inserted == 1
        database.close()
        for wrong in (
            f"rediss://127.0.0.1:{port}/0",
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path}/ca.crt",
            f"redis://127.0.0.1:{port}/0",
        ):
            with pytest.raises(ServerError, match="does not answer"):
                find_server(wrong)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:sesame@a:1",
        "redis+cluster://:sesame@a:port",
        "redis+cluster://:sesame@a/?db=1",
        "redis+other://:sesame@a",
        "redis://:sesame@a,redis://:sesame@b",
    ],
)  # fmt: skip
def test_urls_that_cannot_be_understood(url: str) -> None:
    with pytest.raises(SettingsError, match="not a Redis URL") as caught:
        connect(url)
    assert "sesame" not in str(caught.value)
