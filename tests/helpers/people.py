"""Players and trainers of the counting environment, and what tests do to them: wait, run beside, lose the database."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from tests.helpers.counting import CountingAgent, CountingEnv
from tests.helpers.waiting import until as until  # also for those who import it from here
from tinyverse.algorithms.learner import Learner
from tinyverse.core.errors import DatabaseLost
from tinyverse.core.run_config import run_config
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.weights import encode_weights
from tinyverse.database.base import BEGINNING, Database, new_worker
from tinyverse.database.redis import RedisDatabase
from tinyverse.envs.pool import Pool, SerialPool
from tinyverse.experiment.experiment import session_spec
from tinyverse.player.loop import play
from tinyverse.player.player import Player
from tinyverse.player.uploader import Uploader
from tinyverse.replay.buffer import Replay
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.samplers import Fresh, Sampler
from tinyverse.trainer.config import TrainerConfig
from tinyverse.trainer.ranks import SingleProcess
from tinyverse.trainer.run_folder import RunFolder
from tinyverse.trainer.trainer import Trainer

LENGTH = 5  # steps of a session
HOLDER = "host:1:test"  # of the lease to publish


class Beside(threading.Thread):
    """Runs `function(should_stop=…)` beside the test; on leaving it is stopped, and its error raised."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(daemon=True)
        self.function, self.stop = function, threading.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.result = self.function(should_stop=self.stop.is_set)
        except Exception as error:
            self.error = error

    def finish(self, seconds: float = 60.0) -> Any:
        """What it returned, once it ends of itself; raises what it raised."""
        self.join(seconds)
        assert not self.is_alive(), "it does not end"
        if self.error is not None:
            raise self.error
        return self.result

    def __enter__(self) -> Beside:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop.set()
        if kind is None:
            self.finish()


class Flaky:
    """A database that is lost at chosen calls: `before` they are made, or `after`, when only the answer is missing."""

    def __init__(
        self, database: Database, method: str, before: set[int] = frozenset(), after: set[int] = frozenset()
    ) -> None:  # type: ignore[assignment]
        self.database, self.method, self.before, self.after = database, method, before, after
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.database, name)
        if name != self.method:
            return call

        def unreliable(*arguments: Any, **options: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            if number in self.before:
                raise DatabaseLost("The database is gone.")
            result = call(*arguments, **options)
            if number in self.after:
                raise DatabaseLost("The answer never came.")
            return result

        return unreliable


class CountingLearner(Learner):
    """Keeps its batches; its weight is the number of updates made."""

    def __init__(self, agent: CountingAgent) -> None:
        self.agent, self.batches = agent, []
        self.metrics: dict[str, Any] = {"loss/total": 0.5}

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        self.batches.append(batch)
        self.agent.weight = self.agent.weight + 1
        return self.metrics

    def get_weights(self) -> Mapping[str, np.ndarray]:
        return self.agent.get_weights()

    def state_dict(self) -> dict[str, Any]:
        return {"weight": torch.tensor(self.agent.weight)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.agent.weight = state["weight"].numpy()


def a_run(url: str) -> RedisDatabase:
    """A run of its own on the server."""
    return RedisDatabase(url, f"test-{secrets.token_hex(4)}")


def an_agent(nested: bool = False) -> CountingAgent:
    env = CountingEnv(nested)
    return CountingAgent(env.observation_space, env.action_space)


def a_spec(nested: bool = False, length: int = LENGTH) -> SessionSpec:
    env = CountingEnv(nested)
    return session_spec(env.observation_space, env.action_space, an_agent(nested), length)


def a_trainer(
    database: Any,
    *,
    flow: ReplayConfig = ReplayConfig(batch_size=2, buffer_size=50),  # noqa: B008
    sampler: Sampler | None = None,
    nested: bool = False,
    length: int = LENGTH,
    spec: SessionSpec | None = None,
    folder: RunFolder | None = None,
    ranks: SingleProcess | None = None,
    **options: Any,
) -> Trainer:
    """A trainer of the counting environment; not joined."""
    agent, spec = an_agent(nested), spec or a_spec(nested, length)
    replay = Replay(spec, flow, sampler or Fresh())
    meta, config = run_config("counting", {}, spec), TrainerConfig(**options)
    return Trainer(agent, CountingLearner(agent), replay, database, meta, folder=folder, config=config, ranks=ranks)


def a_player(
    database: Any,
    *,
    num_envs: int = 2,
    nested: bool = False,
    length: int = LENGTH,
    seed: int = 0,
    pool: Pool | None = None,
) -> tuple[Player, Uploader]:
    """A player of the counting environment and its uploader, which is not started."""
    pool = pool or SerialPool(lambda: CountingEnv(nested), num_envs)
    uploader = Uploader(database, new_worker("play", num_envs=pool.num_envs), an_agent(nested))
    return Player(an_agent(nested), pool, length, seed=seed), uploader


def publish(database: Any, version: int, weight: float | None = None, update: int | None = None) -> None:
    """Publishes weights of the counting agent as the trainer HOLDER; by default `weight` is the version."""
    numbers = {"version": version, "update": 10 * version if update is None else update, "step": 0}
    blob = encode_weights({"weight": np.array([version if weight is None else weight], np.float32)}, **numbers)
    database.put_weights(blob, version, holder=HOLDER, update=numbers["update"], step=0)


def sessions_of(database: Any) -> list[Session]:
    """Every session of the counting environment in the database, or in the one inside `Flaky`."""
    inner = getattr(database, "database", database)
    return [a_spec().decode(blob) for _, blob in inner.read(BEGINNING, 100_000)[0]]


def playing(player: Player, uploader: Uploader, **options: Any) -> Beside:
    """`play` beside the test, with its uploader started."""
    uploader.start()
    return Beside(lambda should_stop: play(player, uploader, should_stop=should_stop, **options))
