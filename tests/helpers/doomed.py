"""A trainer, a player or an evaluator that is killed at its Nth step, and again at the next, until it has died at every one.

    python tests/helpers/doomed.py trainer|player|evaluator URL[,URL …] FOLDER

A step is a request (before it, with half of it sent, after it but before the reply) or a change on the disk (before a
file is opened for writing, flushed, renamed, removed). They are found where they happen, by hooks of this process: the
package holds no fail-points, so none can be forgotten. Every life is a fork that ends by kill -9 and is followed by the
same command; between two lives everything that may never be wrong is checked. Prints the names of the steps, as JSON.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from redis.connection import AbstractConnection

from tests.helpers.people import CountingLearner, a_player, a_spec, a_trainer
from tinyverse.cli.context import RunContext
from tinyverse.cli.eval import _evaluate, _record
from tinyverse.cli.weights import WeightsTracker, weights_for
from tinyverse.core.run_config import run_config
from tinyverse.core.weights import WeightsFile, decode_weights
from tinyverse.database.base import BEGINNING, new_worker
from tinyverse.database.connection import open_database
from tinyverse.database.memory import MemoryDatabase
from tinyverse.replay.config import ReplayConfig
from tinyverse.trainer.run_folder import RunFolder
from tinyverse.trainer.trainer import Trainer

RUN = "doomed"
JUDGED = """
from tests.helpers.counting import CountingAgent, CountingEnv
from tinyverse import Experiment

def make_experiment():
    return Experiment(make_env=lambda **_: CountingEnv(), make_agent=CountingAgent, make_learner=lambda agent: None, unroll_length=5)
"""
torch.set_num_threads(1)


class Doom:
    """Counts the steps of this process and kills it at one of them, whose name it leaves in a file."""

    def __init__(self, fatal: int, folder: Path) -> None:
        self.fatal, self.folder, self.count = fatal, str(folder), -1
        self.grave = os.open(folder.parent / "grave", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._hook_requests()
        self._hook_the_disk()

    def step(self, name: str, at_last: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count == self.fatal:
            at_last()
            os.write(self.grave, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def _hook_requests(self) -> None:
        send = AbstractConnection.send_packed_command

        def sends(connection: Any, command: Any, *rest: Any, **named: Any) -> None:
            parts = [command] if isinstance(command, (bytes, str)) else list(command)
            data = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts)
            words = dict.fromkeys(re.findall(rb"\*\d+\r\n\$\d+\r\n([A-Z]+)", data))
            name = b" ".join(words).decode()
            self.step(f"before {name}")
            self.step(f"within {name}", lambda: connection._sock.sendall(data[: len(data) // 2]))
            send(connection, command, *rest, **named)
            self.step(f"after {name}")

        AbstractConnection.send_packed_command = sends

    def _hook_the_disk(self) -> None:
        flush = os.fsync

        def fsync(number: int) -> None:
            self.step("fsync")
            flush(number)

        def watch(event: str, given: tuple[Any, ...]) -> None:
            if event == "open":
                changes = isinstance(given[1], str) and set(given[1]) & set("wax+")
            else:
                changes = event in ("os.rename", "os.remove")
            if changes and str(given[0]).startswith(self.folder):
                self.step(f"{event.removeprefix('os.')} {Path(str(given[0])).suffix}")

        os.fsync = fsync
        sys.addaudithook(watch)


class Ledger(CountingLearner):
    """Writes down, for good, what it learns from before it does."""

    file = -1

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        for row in batch.observations[0].tolist():
            os.write(self.file, (json.dumps(row) + "\n").encode())
        return super().train_step(batch)


def trainers_life(url: str, folder: Path, fatal: int) -> None:
    ledger = os.open(folder.parent / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    doom = Doom(fatal, folder)
    trainer = a_trainer(
        open_database(url, RUN),
        flow=ReplayConfig(batch_size=2, buffer_size=8),
        publish_every=1,
        folder=RunFolder(folder),
    )
    trainer.learner = Ledger(trainer.agent)
    trainer.learner.file = ledger
    trainer.join()
    for _ in range(2):
        trainer.feed()
        if trainer.step():
            trainer.publish(trainer.snapshot())
        trainer.publisher.beat()
        trainer.save(wait=True)
    trainer.leave()
    os.write(doom.grave, b"old age")


def players_life(url: str, folder: Path, fatal: int) -> None:
    doom = Doom(fatal, folder)
    player, uploader = a_player(open_database(url, RUN), num_envs=2)
    player.version = player.update = 0
    uploader.refresh()
    for _ in range(2):
        uploader.offer(player.play(), timeout=1)
        uploader._turn()
    uploader.database.leave(uploader.worker.id)
    os.write(doom.grave, b"old age")


def evaluators_life(url: str, folder: Path, fatal: int) -> None:
    """What `eval --every` does with one version; its score is the update, so that each is the best."""
    doom = Doom(fatal, folder)
    context = RunContext("judged.py", name=RUN, redis=url, seed=0, quiet=True)
    tracker, worker = WeightsTracker(), new_worker("eval", num_envs=1)
    with context.connected(start=False) as database:
        database.beat(worker)
        found = weights_for(context, None, tracker)
        assert found is not None
        played = _evaluate(context, found, lambda: False)
        _record(context, found, dataclasses.replace(played, returns=[float(found.update)]), tracker)
        database.leave(worker.id)
    os.write(doom.grave, b"old age")


class Witness:
    """What was seen after the lives so far; none of it may ever be taken back."""

    def __init__(self, url: str, folder: Path) -> None:
        self.database, self.folder = open_database(url, RUN), folder
        self.version = self.update = -1
        self.best = -1.0
        self.run_id, self.cursor = "", BEGINNING

    def check(self) -> None:
        state = self.database.state()
        assert state.version >= self.version, "the version went back"
        assert state.run_id == self.run_id or not self.run_id
        self.version, self.run_id = state.version, state.run_id
        found = self.database.get_weights()
        assert (found is None) == (state.version < 0)
        if found is not None:
            weights, numbers = decode_weights(found[1])
            assert found[0] == numbers["version"] == state.version
            assert numbers["update"] == weights["weight"][0] == state.update or state.update > numbers["update"]
        entries, _ = self.database.read(self.cursor, 10_000)
        for _, blob in entries:
            a_spec().decode(blob)
        pushed = [key for key, _ in entries]
        self.cursor = pushed[-1] if pushed else self.cursor
        assert state.inserted % 2 == 0, "half a push"
        checkpoint = RunFolder(self.folder).load()
        newest = checkpoint["update"] if checkpoint else -1
        assert newest >= self.update, "a checkpoint was lost"
        self.update = newest
        best = RunFolder(self.folder).best
        score = WeightsFile.read(best).score["mean"] if best.exists() else -1.0
        assert score >= self.best, "better weights were replaced by worse"
        self.best = score
        assert all(row["eval/return"] <= score for row in [*RunFolder(self.folder).rows(), *self.database.metrics()])
        ledger = self.folder.parent / "ledger"
        learned = ledger.read_text().splitlines() if ledger.exists() else []
        assert len(learned) == len(set(learned)), "learned from twice"


def two_players() -> Iterator[list[bytes]]:
    """The next sessions of one player, of the other, and so on."""
    pairs = [
        (name, a_player(MemoryDatabase(), num_envs=1, seed=seed)[0]) for name, seed in (("play-1", 0), ("play-2", 99))
    ]
    for turn in itertools.count():
        for name, player in pairs:
            player.version = player.update = 0
            yield [player.play().sessions(name, 2 * turn + n)[0].encode() for n in range(2)]


class Before:
    """What is done before each life, so that it has something to do."""

    def __init__(self, who: str, url: str, witness: Witness) -> None:
        self.who, self.database, self.pushes = who, witness.database, two_players()
        self.trainer: Trainer | None = None
        if who == "trainer":
            return
        self.trainer = a_trainer(open_database(url, RUN))
        self.trainer.publisher.meta = run_config("judged", {}, a_spec())
        self.trainer.join()

    def __call__(self) -> None:
        if self.who == "trainer":
            for blobs in itertools.islice(self.pushes, 4):
                self.database.append(blobs)
        elif self.who == "evaluator" and self.trainer:
            self.trainer.update += 1
            self.trainer.agent.weight = self.trainer.agent.weight + 1
            self.trainer.publish(self.trainer.snapshot())


def main(who: str, url: str, path: str) -> None:
    os.chdir(path)
    folder = Path("runs") / RUN
    folder.parent.mkdir()
    Path("judged.py").write_text(JUDGED)
    witness, names = Witness(url, folder), list[str]()
    life = {"trainer": trainers_life, "player": players_life, "evaluator": evaluators_life}[who]
    before = Before(who, url, witness)
    while not names or names[-1] != "old age":
        before()
        child = os.fork()
        if child == 0:
            try:
                life(url, folder, len(names))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        names.append((folder.parent / "grave").read_text())
        assert os.WIFSIGNALED(status) or (names[-1] == "old age" and status == 0), f"ended by itself after {names[-1:]}"
        witness.check()
    learned = (folder.parent / "ledger").read_text().splitlines() if who == "trainer" else []
    facts = {"learned": len(learned), "version": witness.version, "update": witness.update, "best": witness.best}
    print(json.dumps({"names": names, **facts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
