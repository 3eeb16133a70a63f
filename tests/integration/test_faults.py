"""What docs/promises.md promises, with real processes, real signals and a real server: broken here in every way."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch

from tests.helpers.chaos import Breakable, Proxy
from tests.helpers.counting import reward_of
from tests.helpers.database_contract import DatabaseContract
from tests.helpers.people import HOLDER, Beside, a_player, a_spec, a_trainer, publish, until
from tests.helpers.servers import name_of, servers_here
from tests.integration.test_commands import Place
from tests.integration.test_commands import until as long_until
from tinyverse.core.errors import DatabaseError, DatabaseLost, TinyverseError
from tinyverse.core.run_config import run_config
from tinyverse.database import server as redis_server
from tinyverse.database import server_config
from tinyverse.database.base import BEGINNING, Worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.schema import Keys
from tinyverse.player.loop import play
from tinyverse.replay.config import ReplayConfig
from tinyverse.trainer.loop import train
from tinyverse.trainer.trainer import Trainer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
CHECKOUT = Path(__file__).parents[2]
IMPATIENT = 1.2  # seconds until the tests' clients give a server up

torch.set_num_threads(1)


@pytest.fixture
def server() -> Iterator[Breakable]:
    with Breakable() as server:
        yield server


@pytest.fixture
def place() -> Iterator[Place]:
    from tests.integration.test_commands import place

    yield from place.__wrapped__()  # type: ignore[attr-defined]


class Team:
    """A player and a trainer of the counting environment, at work in threads; what is seen of them is checked all the time."""

    def __init__(self, url: str, run: str = "team", **flow: Any) -> None:
        self.database = RedisDatabase(url, run, timeout=IMPATIENT)
        self.trainer: Trainer = a_trainer(
            self.database, flow=ReplayConfig(**{"batch_size": 2, "buffer_size": 50, **flow}), publish_every=2
        )
        self.trainer.join()
        self.player, self.uploader = a_player(RedisDatabase(url, run, timeout=IMPATIENT), num_envs=2)

    def __enter__(self) -> Team:
        self.uploader.start()
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(Beside(lambda should_stop: play(self.player, self.uploader, should_stop=should_stop)))
        self._stack.enter_context(Beside(lambda should_stop: train(self.trainer, should_stop=should_stop)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        self.uploader.close()
        if error[0] is None:
            self.check()

    def goes_on(self, seconds: float = 15.0) -> float:
        """Within so many seconds the player plays, the trainer learns from it, publishes, and the player loads it.

        Returns the seconds that this took.
        """
        began, trainer, player = time.monotonic(), self.trainer, self.player
        ends = began + seconds
        version, steps = trainer.version, player.rate.total
        for done in (
            lambda: player.rate.total > steps,
            lambda: trainer.state.version > version,
            lambda: player.version > version,
        ):
            until(done, max(0.1, ends - time.monotonic()))
        return round(time.monotonic() - began, 2)

    def check(self) -> None:
        """Every session that was learned from was whole, and came once."""
        opened = set()
        for batch in self.trainer.learner.batches:
            seen, counts = batch.observations, batch.extras["count"]
            assert torch.equal(batch.extras["saw"], seen[:-1].float())
            valid = batch.valid
            expected = reward_of(seen[:-1, :, 0], seen[:-1, :, 1], batch.actions)
            assert torch.equal(batch.rewards[valid], expected[valid].float())
            assert torch.equal(counts[valid].long(), seen[:-1, :, 1][valid].long())
            for row in seen[0].tolist():
                assert tuple(row) not in opened, "learned from twice"
                opened.add(tuple(row))
        assert opened
        assert set(self.trainer.feeder.rejected) <= {"it came twice"}, self.trainer.feeder.rejected


# -- the server is lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_back", ["empty", "as it was", "as it was long ago"])
def test_within_5_seconds_of_the_servers_return_all_goes_on(
    server: Breakable, comes_back: str, record_property: Callable[..., None]
) -> None:
    with Team(server.url) as team:
        team.goes_on()
        if comes_back == "as it was long ago":
            server.save()
            team.goes_on()
            team.goes_on()
        run_id, version = team.trainer.publisher.meta["run_id"], team.trainer.state.version
        if comes_back == "as it was":
            server.save()
        server.kill()
        time.sleep(1.0)
        if comes_back == "empty":
            server.forget()
        server.start()
        record_property("goes on", team.goes_on(5.0))
        state = team.database.state()
        assert (state.run_id == run_id) == (comes_back != "empty")
        assert state.version > version


def test_a_server_that_takes_no_writes_while_another_takes_over(
    server: Breakable, record_property: Callable[..., None]
) -> None:
    """As a replica does until it is promoted."""
    with Team(server.url) as team, connect(server.admin_url) as admin:
        team.goes_on()
        admin.replicaof("127.0.0.1", 1)
        time.sleep(2.0)
        admin.replicaof("no", "one")
        record_property("goes on", team.goes_on())


def test_a_frozen_server_costs_time_only(server: Breakable, record_property: Callable[..., None]) -> None:
    with Team(server.url) as team:
        team.goes_on()
        server.freeze()
        time.sleep(3 * IMPATIENT)
        server.thaw()
        record_property("goes on", team.goes_on())


def test_a_trainer_publishes_again_what_an_older_copy_of_the_server_has_not(
    server: Breakable, record_property: Callable[..., None]
) -> None:
    """Also when there is nothing to learn from."""
    database = RedisDatabase(server.url, "old", timeout=IMPATIENT)
    trainer = a_trainer(database)
    trainer.join()
    server.save()
    with Beside(lambda should_stop: train(trainer, should_stop=should_stop)):
        trainer.publisher.must_publish = True
        until(lambda: trainer.state.version == 1)
        server.kill()
        server.start()
        began = time.monotonic()
        until(lambda: database.state().version > 1, 5.0)
        record_property("goes on", round(time.monotonic() - began, 2))


def test_a_server_that_is_gone_for_long_costs_a_player_nothing(
    server: Breakable, record_property: Callable[..., None]
) -> None:
    database = RedisDatabase(server.url, "long", timeout=IMPATIENT)
    database.create(run_config("counting", {}, a_spec()))
    assert database.acquire_lease(HOLDER)
    database.report(max_ahead=None)
    publish(database, 0)
    player, uploader = a_player(RedisDatabase(server.url, "long", timeout=IMPATIENT))
    uploader.start()
    with Beside(lambda should_stop: play(player, uploader, should_stop=should_stop)) as playing:
        until(lambda: uploader.state.inserted > 10)
        server.freeze()
        until(lambda: "database" in uploader.waiting.reason, 10)
        played = player.rate.total
        time.sleep(2.0)
        assert player.rate.total == played  # a bounded number of sessions waits
        assert uploader.waiting.seconds > 1.5
        server.thaw()
        thawed = time.monotonic()
        until(lambda: player.rate.total > played)
        record_property("goes on", round(time.monotonic() - thawed, 2))
        playing.stop.set()
    uploader.close()
    sessions = [a_spec().decode(blob) for _, blob in database.read(BEGINNING, 100_000)[0]]
    numbers = [int(session.metadata["sequence"]) for session in sessions]
    assert set(numbers) == set(range(uploader.worker.sessions))  # none is missing; the trainer knows which came twice


# -- the network is bad ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"latency": 0.1}, {"rate": 30_000}, {"pieces": 40}, {"fuse": 3000}, {"silent": True}],
    ids=["latency", "bandwidth", "slices", "cut in a request", "half-open"],
)
def test_a_bad_network_makes_it_slower_and_never_wrong(
    server: Breakable, bad: dict[str, Any], record_property: Callable[..., None]
) -> None:
    with Proxy(server.url) as proxy, Team(proxy.url) as team:
        team.goes_on()
        for _ in range(3):
            vars(proxy).update(bad)
            time.sleep(0.7)
        if not proxy.silent:
            team.goes_on(20.0)
        proxy.heal()
        record_property("goes on", team.goes_on())
        assert proxy.resets == (3 if "fuse" in bad else 0)


def test_connections_that_are_reset_all_the_time(server: Breakable, record_property: Callable[..., None]) -> None:
    with Proxy(server.url) as proxy, Team(proxy.url) as team:
        for _ in range(30):
            time.sleep(0.1)
            proxy.reset()
        record_property("goes on", team.goes_on())


# -- memory of the server -------------------------------------------------------------------------------------------


def fill(server: Breakable, key: str) -> None:
    """20 MB of a run's sessions, which is 2 MB more than the server may take."""
    with connect(server.admin_url) as admin:
        for _ in range(200):
            admin.xadd(key, {"s": bytes(100_000)})
        admin.config_set("maxmemory", admin.info("memory")["used_memory"] - (2 << 20))
        with pytest.raises(redis.OutOfMemoryError):
            admin.set("x", "x")


def test_everyone_starts_on_a_full_server(server: Breakable, record_property: Callable[..., None]) -> None:
    fill(server, Keys("team").sessions)
    with Team(server.url) as team:
        record_property("goes on", team.goes_on())
        team.trainer.feeder.rejected.clear()  # what filled it was no session


@pytest.mark.parametrize(
    "method", ["create", "state", "acquire_lease", "report", "count", "log_metrics", "log_error", "beat", "ask_stop"]
)
def test_each_first_request_finds_room_on_a_full_server(server: Breakable, method: str) -> None:
    database = RedisDatabase(server.url, "full")
    given: dict[str, Any] = {
        "create": ({"spec": "a"},), "acquire_lease": (HOLDER,), "log_metrics": ({"loss": 1},), "log_error": ({"e": "x"},),
        "beat": (Worker("w", "play"),),
    }  # fmt: skip
    named = {"report": {"capacity": 100_000}, "count": {"rejected": 1}}.get(method, {})
    fill(server, Keys("full").sessions)
    getattr(database, method)(*given.get(method, ()), **named)
    kept = {150, 200} if method == "state" else {150}  # Redis refuses reads in a MULTI too, Valkey does not
    assert database.size()["sessions"] in kept


def test_without_a_trainer_memory_does_not_grow(server: Breakable) -> None:
    database = RedisDatabase(server.url, "alone")
    database.create(run_config("counting", {}, a_spec()))
    assert database.acquire_lease(HOLDER)
    publish(database, 0)
    database.report(capacity=50, max_ahead=None)
    player, uploader = a_player(RedisDatabase(server.url, "alone"))
    uploader.start()

    def facts() -> tuple[int, int]:
        with connect(server.admin_url) as admin:
            return admin.info("memory")["used_memory"], admin.dbsize()

    with Beside(lambda should_stop: play(player, uploader, should_stop=should_stop)):
        until(lambda: uploader.state.inserted > 300)
        memory, keys = facts()
        until(lambda: uploader.state.inserted > 1000, 30)
        assert facts()[0] < memory + (1 << 20) and facts()[1] <= keys
    uploader.close()
    assert database.size()["sessions"] == 50


# -- processes are killed and frozen --------------------------------------------------------------------------------

PUSHES = """
    import os, sys
    from tinyverse.database.redis import RedisDatabase
    database, name, number = RedisDatabase(sys.argv[1], "torn"), os.getpid(), 0
    print(name, flush=True)
    while True:
        database.append([b"%d %d " % (name, number + part) + bytes([part]) * 500_000 for part in range(8)])
        number += 8
"""
TRAINS = """
    import sys
    from tests.helpers.people import Beside, a_trainer
    from tinyverse.database import base, redis
    from tinyverse.trainer.loop import train
    base.LEASE_SECONDS = 2.0
    trainer = a_trainer(redis.RedisDatabase(sys.argv[1], "two"))
    trainer.join()
    print("joined", flush=True)
    train(trainer)
"""


@contextlib.contextmanager
def script(text: str, *words: str, limit: str = "") -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own; `limit` is a shell's command before it."""
    paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    command = [sys.executable, "-c", textwrap.dedent(text), *words]
    if limit:
        command = ["/bin/sh", "-c", f'{limit}; exec "$@"', "sh", *command]
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_players_killed_in_the_middle_of_pushes_tear_nothing(server: Breakable) -> None:
    """A push is eight sessions of 500 kB; its writer dies at a random instant."""
    database, random = RedisDatabase(server.url, "torn"), np.random.default_rng(0)
    database.report(capacity=32)
    for _ in range(8):
        with script(PUSHES, server.url) as process:
            name, before = said(process), database.state().inserted
            until(lambda: database.state().inserted > before)
            time.sleep(random.uniform(0, 0.03))
        entries, state = database.read(BEGINNING, 100)
        assert state.inserted % 8 == 0 and len(entries) == min(32, state.inserted)
        blobs = [blob for _, blob in entries]
        for first in range(0, len(blobs), 8):
            who, number, _ = blobs[first].split(b" ", 2)
            for part, blob in enumerate(blobs[first : first + 8]):
                head = b"%s %d " % (who, int(number) + part)
                assert blob == head + bytes([part]) * 500_000
        assert blobs[-1].startswith(name.encode())


def test_a_frozen_trainer_is_fenced(server: Breakable, record_property: Callable[..., None]) -> None:
    """It wakes when another has taken over, and ends; versions only grow."""
    database = RedisDatabase(server.url, "two")
    with script(TRAINS, server.url) as first, script(TRAINS, server.url) as second:
        until(lambda: database.state().version >= 0, 60)
        until(lambda: any("another trainer" in worker.waits_for for worker in database.workers()), 60)
        waits = [worker.pid for worker in database.workers() if worker.waits_for.startswith("another")]
        holder = first.pid if waits == [second.pid] else second.pid
        frozen, other = (first, second) if first.pid == holder else (second, first)
        version = database.state().version
        os.kill(frozen.pid, signal.SIGSTOP)
        began = time.monotonic()
        until(lambda: database.state().version > version, 20)
        record_property("goes on", round(time.monotonic() - began, 2))
        assert said(other) == "joined"
        os.kill(frozen.pid, signal.SIGCONT)
        _, err = frozen.communicate(timeout=30)
        assert frozen.returncode == 1 and "LeaseLost: another trainer has taken over this run" in err
        assert other.poll() is None
        assert database.state().version > version


@pytest.mark.timeout(300)  # whole programs, each of which imports torch
def test_signals_end_each_verb_in_order(place: Place) -> None:
    """Each within 10 seconds, with 0, saved, and out of the list of workers."""
    trainer = place.start("catch", "train", "-b", 4, "--save-every", 1000)
    long_until(lambda: "training run" in place.said(trainer), "the trainer")
    player = place.start("catch", "play", "-b", 4)
    judge = place.start("catch", "eval", "--every", "--json", "--no-video")
    assert judge.stdout is not None and judge.stdout.readline()
    long_until(lambda: place.info()["update"] > 2, "updates")
    for process, number in ((judge, signal.SIGTERM), (player, signal.SIGHUP), (trainer, signal.SIGTERM)):
        began = time.monotonic()
        process.send_signal(number)
        place.end(process)
        assert time.monotonic() - began < 10
    assert len(place.updates()) == 1 and place.info()["workers"] == []


@pytest.mark.timeout(300)  # whole programs, each of which imports torch
def test_a_second_ctrl_c_ends_at_once(place: Place) -> None:
    player = place.start("catch", "play")  # waits for a trainer that never comes
    long_until(lambda: "waiting for a trainer" in place.said(player), "the player")
    server = next(process for process in place.mine() if "-server" in process.name())
    server.suspend()
    player.send_signal(signal.SIGINT)
    time.sleep(0.3)
    player.send_signal(signal.SIGINT)
    began = time.monotonic()
    player.wait(20)
    server.resume()
    assert time.monotonic() - began < 10 and player.returncode != 0


# -- the disk is full -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)  # whole programs, each of which imports torch
def test_on_a_full_disk_checkpoints_stay_whole_and_training_goes_on(place: Place) -> None:
    """No file may grow above 20 kB, so that the second checkpoint, of a larger replay, does not fit."""
    place.do("catch", "local", "-n", 3, "-q")
    before = place.updates()
    size = max(file.stat().st_size for file in place.path.glob("runs/*/checkpoints/*"))
    command = [
        "/bin/sh", "-c", f'ulimit -f {size // 1024}; exec "$@"', "sh",
        sys.executable, "-m", "tinyverse", "catch", "local", "-n", "150", "--save-every", "0.2",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=place.path, env=place.env, capture_output=True, text=True, timeout=200, check=False
    )
    assert "cannot be written" in done.stderr and "Training goes on" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert place.updates() == before
    place.do("catch", "local", "-n", 2, "-q")  # with room again it goes on from there
    assert place.updates()[-1] > before[-1]


# -- strange bytes, clocks, crowds and servers ----------------------------------------------------------------------


class Canary:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_in_every_key_is_never_executed_and_training_goes_on(
    server: Breakable, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    canary = pickle.dumps(Canary(tmp_path / "executed"))
    pickle.loads(canary)
    (tmp_path / "executed").unlink()  # so it would sing
    keys = Keys("team")
    with Team(server.url) as team:
        team.goes_on()
        with connect(server.admin_url) as admin:
            admin.xadd(keys.sessions, {"s": canary})
            admin.xadd(keys.sessions, {"other": canary})
            admin.hset(keys.heartbeats, "evil", canary)
            admin.set(keys.weights(team.database.state().version), canary)
            for stream in (keys.episodes, keys.metrics, keys.errors):
                admin.xadd(stream, {"row": canary})
        for read in (team.database.episodes, team.database.metrics, team.database.errors, team.database.workers):
            with contextlib.suppress(TinyverseError):
                read()
        record_property("goes on", team.goes_on())
        assert sum(team.trainer.feeder.rejected.values()) == 2
        team.trainer.feeder.rejected.clear()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["stat", "current", "meta"])
def test_nonsense_in_a_key_is_one_sentence(server: Breakable, key: str) -> None:
    database = RedisDatabase(server.url, "odd")
    database.create({"spec": "a"})
    with connect(server.admin_url) as admin:
        if key == "stat":
            admin.hset(Keys("odd").stat, "capacity", b"\xff\x80")
        elif key == "current":
            admin.hset(Keys("odd").current, "version", "many")
        else:
            admin.hset(Keys("odd").meta, "run_id", b"\xff")
    with pytest.raises(DatabaseError, match="holds something .* clear --force"):
        database.state()


def test_no_clock_but_the_servers_counts(server: Breakable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A player a day ahead, a trainer a day behind; then both jump over to the other side."""
    real, days = time.time, {"play": 86_400.0, "trainer": -86_400.0}

    def skewed() -> float:
        name = threading.current_thread().name
        return real() + (days["play"] if name == "uploader" else days["trainer"])

    monkeypatch.setattr(time, "time", skewed)
    with Team(server.url) as team:
        team.goes_on()
        assert sorted(worker.role for worker in team.database.workers()) == ["play", "train"]
        assert all(worker.seen < 3 for worker in team.database.workers())
        days.update(play=days["trainer"], trainer=days["play"])
        team.goes_on()
        assert all(worker.seen < 3 for worker in team.database.workers())
        server.save()
        server.kill()
        server.start()
        team.goes_on()


def test_two_hundred_players_and_a_reader_that_does_not_read(
    server: Breakable, record_property: Callable[..., None]
) -> None:
    with Proxy(server.url) as proxy, Team(server.url) as team:
        slow = RedisDatabase(proxy.url, "team", timeout=60.0)
        crowd = [RedisDatabase(server.url, "crowd") for _ in range(200)]
        proxy.rate = 1
        with Beside(lambda should_stop: _ignoring(DatabaseLost, slow.read, BEGINNING, 100)) as reader:
            for turn in range(3):
                for number, one in enumerate(crowd):
                    state = one.append([b"x" * 1000], worker=Worker(f"{number}", "play"))
                assert state.inserted == 200 * (turn + 1)
            assert len(crowd[0].workers()) == 200
            team.goes_on()
            proxy.heal()
            proxy.reset()
            reader.finish(20)
        with connect(server.admin_url) as admin:
            admin.config_set("maxclients", len(admin.client_list()))
            one_more = RedisDatabase(server.url, "crowd")
            # the server says so and hangs up; whether that is read before the next word is sent is a matter of luck
            with pytest.raises(DatabaseLost, match="max number of clients|does not answer"):
                one_more.state()
            team.goes_on()
            admin.config_set("maxclients", 1000)
            began = time.monotonic()
            until(lambda: _answers(one_more))
            record_property("goes on", round(time.monotonic() - began, 2))
        for one in crowd:
            one.close()


def _answers(database: RedisDatabase) -> bool:
    with contextlib.suppress(DatabaseLost):
        database.state()
        return True
    return False


def _ignoring(kind: type[Exception], call: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(kind):
        call(*arguments)


@pytest.fixture(scope="module", params=servers_here(), ids=name_of)
def each_server(request: pytest.FixtureRequest) -> Iterator[redis_server.Server]:
    with pytest.MonkeyPatch.context() as patch:
        version = server_config.version_of(request.param)
        patch.setattr(server_config, "find_binary", lambda: (request.param, version))
        with redis_server.private_server() as server:
            assert server.version == ".".join(map(str, version or ()))
            yield server


class TestEveryServer(DatabaseContract):
    """The contract on each server that is installed here."""

    @pytest.fixture
    def database(self, each_server: redis_server.Server) -> Iterator[RedisDatabase]:  # type: ignore[override]
        made = RedisDatabase(each_server.url, f"test-{secrets.token_hex(4)}")
        yield made
        made.clear()
        made.close()
