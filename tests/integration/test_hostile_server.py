"""One write with a player's password ends nobody: hostile rows on a real server, and every command that looks, stops or removes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Tinyverse, created, info
from tinyverse.core.errors import DatabaseLost
from tinyverse.database.base import BEGINNING, Worker
from tinyverse.database.connection import connect
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.schema import Keys
from tinyverse.monitoring.dashboard import history
from tinyverse.monitoring.dashboard.frames import Frames
from tinyverse.trainer.run_folder import RunFolder

LAST = f"{2**64 - 1}-{2**64 - 1}"
BIG = "1" + "0" * 400


def beat(**more: Any) -> str:
    return json.dumps({"id": "play-x", "role": "play", "host": "h", "at": 1e12, "steps_per_second": 5, **more})


def spoil(client: Any, keys: Keys) -> None:
    """All that a player may write, and what only somebody with more rights can."""
    beats = [
        beat(), beat(role="train"), beat(stages={"{": 0.1}), beat(stages={"{share:2000000000}": 0.1}), beat(waits_for=", more session"),
        beat(stages={"\x1b]0;title\x07\x1b[2J": 0.1}), beat(num_envs=10**9), beat(num_envs=0.5), beat().replace("5", BIG), "[" * 50_000,
    ]  # fmt: skip
    now = client.time()[0]
    beats += [text.replace("1000000000000.0", str(now)) for text in beats]
    client.hset(keys.heartbeats, mapping={f"x{number}": text for number, text in enumerate(beats)})
    for row in (f'{{"return":{BIG}}}', '{"return":"\x1b[2J"}', '{"step":{}}', '{"eval/return":[]}', "{", "9" * 5000):
        for stream in (keys.episodes, keys.metrics, keys.errors):
            client.xadd(stream, {"row": row})
    error = {"when": "now", "role": "play", "host": "h", "error": "x" * 6_000_000, "traceback": "y"}
    client.xadd(keys.errors, {"row": json.dumps(error)})
    client.xadd(keys.sessions, {"s": "x"})
    client.xadd(keys.sessions, {"other": "x"})
    tally = client.hgetall(keys.tally)
    for name in ("count:rejected", "count:\x1b[2J", "inserted", "bytes"):
        client.hincrby(keys.tally, name, 2**63 - 1 - int(tally.get(name.encode(), 0)))
    for stream in (keys.episodes, keys.metrics, keys.errors, keys.sessions):
        client.xadd(stream, {"row": "{}", "s": "x"}, id=LAST)


def test_hostile_rows_end_no_command(run: Tinyverse, tinyverse: Tinyverse, redis_url: str) -> None:
    created(run)
    run("play", "-n", 1, "-b", 2, "-q")
    name = run.name  # type: ignore[attr-defined]
    database, keys = RedisDatabase(redis_url, name), Keys(name)
    with connect(redis_url) as client:
        spoil(client, keys)
        facts = info(run)
        assert facts["counters"]["unreadable"] > 0 and facts["bytes"] >= 0
        assert all(worker["num_envs"] in (0, 2) for worker in facts["workers"])
        for words in (["info"], ["info", "--errors"]):
            assert "\x1b" not in run(*words).out
        history(database, RunFolder(Path("runs") / name))
        for worker in facts["workers"]:
            Frames(database).newest(worker["id"])
        assert tinyverse("catch", "sessions", "ls", "--name", name).code == 0
        database.append(
            [], episodes=[{"return": 1.0, "length": 2}], worker=Worker("play-1", "play")
        )  # at its end, passed over
        with pytest.raises(DatabaseLost, match="takes no sessions now"):
            database.append([b"session"])
        run("train", "--minutes", 0, "-q")  # the log takes rows again, and sessions find a place
        database.read(BEGINNING, 10)
        database.report(update=1)
        database.append([b"session"])
        assert [blob for _, blob in database.read(BEGINNING, 10)[0]] == [b"session"]
        client.set(f"{keys.meta}-odd", "left")
        run("clear", "--yes", "--force")
    database.close()


@pytest.mark.parametrize("spoiled", ["meta", "stat", "current", "none"])
def test_clear_force_removes_whatever_is_left(run: Tinyverse, redis_url: str, spoiled: str) -> None:
    created(run)
    name = run.name  # type: ignore[attr-defined]
    keys, garbled = Keys(name), {"run_id": b"\xff", "version": b"many", "capacity": b"\xff", "format": b"?"}
    with connect(redis_url) as client:
        if spoiled == "none":
            client.unlink(keys.meta)
        else:
            client.hset(getattr(keys, spoiled), mapping=garbled)
        run("clear", "--yes", "--force")
        there: Callable[[str], Any] = client.hgetall
        assert not any(there(key) for key in (keys.meta, keys.stat, keys.current, keys.heartbeats, keys.tally))
