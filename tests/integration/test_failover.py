"""Another server takes over while a run goes on: Sentinels promote it, or the nodes of a cluster do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.database.test_connection import Servers, admin, cluster_node, free_port, make_cluster, owner, raw, until
from tests.integration.test_faults import Team

AT_ONCE = "repl-diskless-sync-delay 0"  # who follows gets its copy without a wait for more followers

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


def follows(port: int, master: int) -> bool:
    """Whether one server has all that another has."""
    facts = admin(port).info("replication")
    return facts["role"] == "slave" and facts["master_port"] == master and facts["master_link_status"] == "up"


def found(watch: int) -> str:
    """The URL of what Sentinels watch, once they know who could take over."""
    until(lambda: raw(watch, "SENTINEL", "REPLICAS", "pong").count(b"runid"))
    return f"redis+sentinel://127.0.0.1:{watch}/pong"


@pytest.mark.parametrize("copy", ["up to date", "older"])
def test_sentinels_promote_another_server_and_all_goes_on(copy: str, record_property: Callable[..., None]) -> None:
    """Then the first one comes back, follows, and is promoted in its turn."""
    first, second, watch = free_port(), free_port(), free_port()
    sentinel = (
        f"port {watch}\nsentinel monitor pong 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds pong 500\nsentinel failover-timeout pong 2000"
    )
    with Servers(f"port {first}\n{AT_ONCE}", f"port {second}\nreplicaof 127.0.0.1 {first}\n{AT_ONCE}") as servers:
        until(lambda: follows(second, first))
        with Servers(sentinel), Team(found(watch)) as team:
            team.goes_on()
            run_id = team.trainer.state.run_id
            if copy == "older":
                admin(second).save()
                servers.kill(1)
                team.goes_on()
                team.goes_on()
            version = team.trainer.state.version
            servers.kill(0)
            if copy == "older":
                servers.start(1)
            record_property("goes on", team.goes_on(60.0))
            assert admin(second).info("replication")["role"] == "master"
            state = team.trainer.state
            assert state.run_id == run_id and state.version > version
            servers.start(0)
            until(lambda: follows(first, second), 60)
            servers.kill(1)
            record_property("goes on", team.goes_on(60.0))
            assert team.trainer.state.version > state.version


def test_a_replica_in_a_cluster_takes_over_and_all_goes_on(record_property: Callable[..., None]) -> None:
    ports = [free_port() for _ in range(4)]
    with Servers(*(f"{cluster_node(port)}\n{AT_ONCE}" for port in ports)) as servers:
        make_cluster(ports[:3])
        holder = next(index for index, port in enumerate(ports[:3]) if owner(port, "team"))
        admin(ports[3]).execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        name = raw(ports[holder], "CLUSTER", "MYID").decode()
        until(lambda: admin(ports[3]).execute_command("CLUSTER", "REPLICATE", name))
        until(lambda: follows(ports[3], ports[holder]))
        for port in ports:
            until(lambda port=port: b"cluster_known_nodes:4" in raw(port, "CLUSTER", "INFO"))
        with Team("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports) + "/") as team:
            team.goes_on()
            version = team.trainer.state.version
            servers.kill(holder)
            record_property("goes on", team.goes_on(60.0))
            assert owner(ports[3], "team") and team.trainer.state.version > version
