"""Append and read of Pong sessions: ours, the limit on this server, and the naive way, interleaved in one run.

    python benchmarks/database.py [--json] [--smoke]

limit: the same compressed bytes by bare pipelined XADD and XRANGE, with no heartbeat and no books.
naive: stacked frames, joblib, one LPUSH and one LINDEX a session, as the first tinyverse did.
Prints sessions per second as medians, the ratio of ours to both, and the spread over the repeats.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable

import joblib
import numpy as np

from tinyverse.agent import RandomAgent
from tinyverse.envs.atari import atari_pool
from tinyverse.player import Player, new_worker
from tinyverse.redis_database import RedisDatabase
from tinyverse.redis_server import connect, private_server
from tinyverse.session import SessionSpec

STEPS, AT_ONCE = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="seconds instead of a minute")
    arguments = parser.parse_args()
    count, repeats = (64, 2) if arguments.smoke else (2048, 5)
    pool = atari_pool("pong", AT_ONCE)
    agent = RandomAgent(pool.observation_space, pool.action_space)
    spec = SessionSpec.of(pool.observation_space, pool.action_space, agent, STEPS)
    sessions = Player(agent, pool, STEPS).play().sessions("bench", 0)
    for session in sessions:
        session.metadata.update(version="0", update="0")
    blobs = [session.encode() for session in sessions]
    stacked = [np.repeat(session.observations[:, None], 4, axis=1) for session in sessions]
    rates: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], None]) -> None:
        began = time.perf_counter()
        function()
        rates.setdefault(name, []).append(count / (time.perf_counter() - began))

    with private_server() as server:
        database, client, worker = RedisDatabase(server.url, "bench"), connect(server.admin_url), new_worker("play")
        database.create({"spec": spec.to_json()})
        database.report(capacity=count)

        def append() -> None:
            for _ in range(count // AT_ONCE):
                database.append([session.encode() for session in sessions], worker=worker)

        def read() -> None:
            position, seen = "0-0", 0
            while seen < count:
                entries, _ = database.read(position, 256)
                for _, blob in entries:
                    spec.decode(blob)
                position, seen = entries[-1][0], seen + len(entries)

        def limit_append() -> None:
            for _ in range(count // AT_ONCE):
                pipe = client.pipeline(transaction=False)
                for blob in blobs:
                    pipe.xadd("limit", {b"s": blob}, maxlen=count, approximate=False)
                pipe.execute()

        def limit_read() -> None:
            client.xrange("limit", count=count)

        def naive_append() -> None:
            for number in range(count // 8):
                buffer = io.BytesIO()
                joblib.dump((stacked[number % AT_ONCE], sessions[0].actions, sessions[0].rewards), buffer)
                client.lpush("naive", buffer.getvalue())
                client.ltrim("naive", 0, count // 8 - 1)

        def naive_read() -> None:
            for number in range(count // 8):
                joblib.load(io.BytesIO(client.lindex("naive", number)))

        for _ in range(repeats):
            for name, function in (
                ("append", append),
                ("limit append", limit_append),
                ("read", read),
                ("limit read", limit_read),
            ):
                timed(name, function)
            for name, function in (("naive append", naive_append), ("naive read", naive_read)):
                timed(name, function)
                rates[name][-1] /= 8  # an eighth of the sessions

    medians = {name: float(np.median(values)) for name, values in rates.items()}
    rows = [
        {
            "what": what, "sessions_per_second": round(medians[what]), "spread": [round(min(rates[what])), round(max(rates[what]))],
            "of_limit": round(medians[what] / medians[f"limit {what}"], 2), "times_naive": round(medians[what] / medians[f"naive {what}"], 1),
        }
        for what in ("append", "read")
    ]  # fmt: skip
    if arguments.json:
        print(json.dumps(rows))
    for row in [] if arguments.json else rows:
        low, high = row["spread"]
        print(
            f"{row['what']:>6}: {row['sessions_per_second']:,} sessions/s [{low:,}..{high:,}], {row['of_limit']} of bare pipelined streams, {row['times_naive']} times the naive way"
        )


if __name__ == "__main__":
    main()
