"""Reverb as a store of whole sessions, run by benchmarks/database.py; prints one line of JSON, in sessions per second.

    python benchmarks/peers/reverb.py SESSIONS.npz SECONDS CLIENT_CORE SERVER_CORE

The server is a process of its own on localhost with one uniform table of 1,000. SESSIONS.npz has every field of some
sessions as [N, ...]. Both sides compress (snappy, frames as differences), which is Reverb's default.

append: "insert" is `Client.insert` of one session after another; "writer" is a `TrajectoryWriter` whose single step is
    a session, flushed so that 8 may be on their way.
read: "sample" is `Client.sample` of 32; "dataset" is `TrajectoryDataset`, which fetches ahead, in batches of 32.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
sys.path.pop(0)  # this script's folder: there, `reverb` would be this file

import numpy as np
import reverb

TABLE, KEPT, AT_ONCE, ON_THEIR_WAY = "sessions", 1000, 32, 8


def main(path: str, seconds: str, client_core: str, server_core: str) -> None:
    os.sched_setaffinity(0, {int(client_core)})
    with np.load(path) as fields:
        sessions = list(zip(*(fields[name] for name in sorted(fields.files)), strict=True))
    with server(int(server_core)) as address:
        client = reverb.Client(address)
        append = {name: rate_of(work, float(seconds)) for name, work in writing(client, sessions).items()}
        client.reset(TABLE)
        for session in itertools.islice(itertools.cycle(sessions), KEPT):
            client.insert(list(session), {TABLE: 1.0})
        ways = reading(client, address, sessions[0])
        read = {name: rate_of(work, float(seconds)) for name, work in ways.items()}
        print(json.dumps({"append": append, "read": read}))


def writing(client: reverb.Client, sessions: list[tuple[np.ndarray, ...]]) -> dict[str, Callable[[], int]]:
    endless = itertools.cycle(sessions)
    writer = client.trajectory_writer(num_keep_alive_refs=1)

    def insert() -> int:
        client.insert(list(next(endless)), {TABLE: 1.0})
        return 1

    def write() -> int:
        for session in itertools.islice(endless, 2 * ON_THEIR_WAY):
            writer.append(list(session))
            writer.create_item(TABLE, 1.0, tuple(column[-1] for column in writer.history))
        writer.flush(block_until_num_items=ON_THEIR_WAY)
        return 2 * ON_THEIR_WAY

    return {"insert": insert, "writer": write}


def reading(client: reverb.Client, address: str, session: tuple[np.ndarray, ...]) -> dict[str, Callable[[], int]]:
    import tensorflow

    dataset = reverb.TrajectoryDataset(
        address, TABLE, max_in_flight_samples_per_worker=2 * AT_ONCE, dtypes=tuple(field.dtype for field in session),
        shapes=tuple(tensorflow.TensorShape((None, *field.shape)) for field in session),
    )  # fmt: skip
    batches = iter(dataset.batch(AT_ONCE).prefetch(1).as_numpy_iterator())

    def sample() -> int:
        return len(list(client.sample(TABLE, num_samples=AT_ONCE)))

    def take() -> int:
        next(batches)
        return AT_ONCE

    return {"sample": sample, "dataset": take}


def rate_of(work: Callable[[], int], seconds: float) -> float:
    ends = time.perf_counter() + seconds / 2
    while time.perf_counter() < ends:
        work()
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        done += work()
    return done / passed


@contextlib.contextmanager
def server(core: int) -> Iterator[str]:
    """The address of a server that ends with its standard input, so with this process."""
    with subprocess.Popen(
        [sys.executable, __file__, "serve", str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        yield f"localhost:{int(process.stdout.readline())}"
        process.communicate(timeout=20)


def serve(core: str) -> None:
    os.sched_setaffinity(0, {int(core)})
    table = reverb.Table(
        TABLE, reverb.selectors.Uniform(), reverb.selectors.Fifo(), KEPT, reverb.rate_limiters.MinSize(1)
    )
    running = reverb.Server([table])
    print(running.port, flush=True)
    sys.stdin.read()
    running.stop()


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "serve" else main(*sys.argv[1:])
