"""Player: steps a batch of games, cuts what happened into sessions, and pushes them.

Nothing that may be slow stands in the stepping loop: a `Courier` thread encodes, pushes, and fetches newer weights
into a spare agent, which the player swaps in by reference between two sessions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinyverse.agents.agent import Agent
from tinyverse.core import nest, system
from tinyverse.core.errors import CodecError, DatabaseError, DatabaseLost, SpecError
from tinyverse.core.session import Session
from tinyverse.core.timing import Rate, Stages, Ticker, Waiting
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import HEARTBEAT_SECONDS, RETRY_SECONDS, Database, Worker
from tinyverse.envs.pool import Pool

logger = logging.getLogger(__name__)

STAGES_SECONDS = 5.0  # over which the shares of a player's time are taken
SEEDS_APART = 1 << 20  # between the two pools of a player
CLOSING_SECONDS = 5.0  # that a closing courier goes on trying
AT_ONCE = 64 << 20  # bytes in one push
WAITING_BATCHES = (
    4  # batches of sessions that may wait to be pushed; then the player waits, or drops if it is real-time
)


@dataclasses.dataclass
class Rollout:
    """T steps of B games as they were played, time first, to be cut into sessions."""

    observations: nest.Tree  # [T+1, B, …] per leaf
    actions: nest.Tree  # [T, B, …] per leaf
    rewards: np.ndarray  # [T, B]
    terminated: np.ndarray  # [T, B]
    truncated: np.ndarray  # [T, B]
    alive: np.ndarray  # [T, B]
    initial_memory: nest.Tree  # [B, …] per leaf
    extras: dict[str, np.ndarray]  # [T, B, …]
    episodes: list[list[tuple[float, int]]]  # per game: (return, length) of those that ended
    version: int
    update: int

    @property
    def num_games(self) -> int:
        return len(self.episodes)

    def sessions(self, player: str, sequence: int, **marks: str) -> list[Session]:
        """One session per game; `sequence` numbers the first of them, `marks` join their metadata."""
        return [self._session(game, player, sequence + game, marks) for game in range(self.num_games)]

    def _session(self, game: int, player: str, sequence: int, marks: dict[str, str]) -> Session:
        def column(leaf: np.ndarray) -> np.ndarray:
            return leaf[:, game]

        names = ("observations", "actions", "rewards", "terminated", "truncated", "alive", "extras")
        returns, lengths = [total for total, _ in self.episodes[game]], [length for _, length in self.episodes[game]]
        return Session(
            **{name: nest.map(column, getattr(self, name)) for name in names},
            initial_memory=nest.map(lambda leaf: leaf[game], self.initial_memory),
            metadata={
                "player": player, "sequence": str(sequence), "version": str(self.version), "update": str(self.update),
                "returns": json.dumps(returns), "lengths": json.dumps(lengths), **marks,
            },
        )  # fmt: skip


class Player:
    """Steps every game `unroll_length` times at a call; `agent` may be swapped between two calls.

    Given two pools it takes them in turn: one is stepped (in the emulator's threads, if it has them) while the agent
    acts in the other. Synonym: double-buffered sampling. Their games count as one batch, the first pool's first.
    """

    def __init__(self, agent: Agent, pools: Pool | Sequence[Pool], unroll_length: int, *, seed: int = 0) -> None:
        self.agent, self.unroll_length = agent, unroll_length
        self.pools = [pools] if isinstance(pools, Pool) else list(pools)
        self.version, self.update = -1, 0
        self.rate, self.stages = Rate(), Stages()
        agent.seed(seed)
        self._lanes, self.num_games = [], 0
        for index, pool in enumerate(self.pools):
            columns = slice(self.num_games, self.num_games + pool.num_games)
            self._lanes.append(_Lane(agent, pool, columns, seed + index * SEEDS_APART))
            self.num_games = columns.stop

    def play(self) -> Rollout:
        """The next T steps of every game."""
        T, lanes = self.unroll_length, self._lanes
        rollout = self._blank()
        for lane in lanes:
            lane.act(self.agent, rollout, 0, self.stages)
        for t in range(T):
            for lane in lanes:
                with self.stages("environment"):
                    lane.receive(rollout, t)
                if t < T - 1:
                    lane.act(self.agent, rollout, t + 1, self.stages)
        for lane in lanes:
            lane.put(rollout.observations, T, lane.observations)
        self.rate.add(int(rollout.alive.sum()))
        return rollout

    def close(self) -> None:
        """Closes the games."""
        for pool in self.pools:
            pool.close()

    def _blank(self) -> Rollout:
        T, games, lanes = self.unroll_length, self.num_games, self._lanes
        flags = {name: np.zeros((T, games), bool) for name in ("terminated", "truncated", "alive")}
        memories = [lane.memory_before_row_0(self.agent) for lane in lanes]
        return Rollout(
            observations=_buffers(lanes[0].observations, T + 1, games), actions=None, extras={}, **flags,
            rewards=np.zeros((T, games), np.float32),
            initial_memory=nest.map(lambda *parts: np.concatenate(parts), *memories),
            episodes=[[] for _ in range(games)], version=self.version, update=self.update,
        )  # fmt: skip


class _Lane:
    """One pool's games, which are some columns of a rollout, between two steps."""

    def __init__(self, agent: Agent, pool: Pool, columns: slice, seed: int) -> None:
        games = pool.num_games
        self.pool, self.columns = pool, columns
        self.observations = pool.reset(seed)
        self._ended = np.zeros(games, bool)  # in the previous row: this row is the game's reset
        self._first = np.ones(games, bool)  # the observations at hand open an episode
        self._memory = agent.initial_memory(games)
        self._blank_memory = nest.map(np.array, agent.memory_arrays(self._memory))
        self._over = np.zeros(games, bool)  # the same, of whole games: an episode may be a part of one
        self._return, self._length = np.zeros(games), np.zeros(games, np.int64)

    def act(self, agent: Agent, rollout: Rollout, t: int, stages: Stages) -> None:
        """Chooses the actions of row t and sends them to the games."""
        self.put(rollout.observations, t, self.observations)
        with stages("act"):
            actions, self._memory, extras = agent.act(self.observations, self._memory, self._first)
        if rollout.actions is None:
            T, games = rollout.rewards.shape
            rollout.actions, rollout.extras = _buffers(actions, T, games), _buffers(extras, T, games)
        self.put(rollout.actions, t, actions)
        self.put(rollout.extras, t, extras)
        self.pool.send(actions)

    def receive(self, rollout: Rollout, t: int) -> None:
        """What came of the actions of row t."""
        step, columns = self.pool.receive(), self.columns
        alive = ~self._ended
        rollout.rewards[t, columns], rollout.alive[t, columns] = step.rewards * alive, alive
        rollout.terminated[t, columns], rollout.truncated[t, columns] = step.terminated & alive, step.truncated & alive
        self.observations, self._first = step.observations, self._ended
        self._ended = step.terminated | step.truncated
        goes_on, self._over = ~self._over, self._ended if step.game_over is None else step.game_over
        self._return, self._length = (self._return + step.rewards) * goes_on, (self._length + 1) * goes_on
        for game in np.flatnonzero(self._over & goes_on):
            ended = (float(self._return[game]), int(self._length[game]))
            rollout.episodes[columns.start + game].append(ended)

    def put(self, buffers: nest.Tree, t: int, tree: nest.Tree) -> None:
        """Writes row t of this lane's columns."""
        nest.map(lambda buffer, leaf: buffer[t].__setitem__(self.columns, leaf), buffers, tree)

    def memory_before_row_0(self, agent: Agent) -> nest.Tree:
        """Memory as arrays, with the reset before row 0 applied: sessions cannot tell it otherwise."""

        def reset(blank: np.ndarray, now: np.ndarray) -> np.ndarray:
            return np.where(self._first.reshape(-1, *[1] * (now.ndim - 1)), blank, now)

        return nest.map(reset, self._blank_memory, agent.memory_arrays(self._memory))


class Courier(threading.Thread):
    """Carries rollouts to the database and newer weights back, beside the stepping loop.

    Every push is a heartbeat too and brings back the run's State. A push that the database did not confirm is made
    again: the trainer knows sessions by (player, sequence).
    """

    def __init__(self, database: Database, worker: Worker, spare: Agent) -> None:
        super().__init__(name="courier", daemon=True)
        self.database, self.worker = database, worker
        self.state = database.beat(worker)
        self.epoch = self.state.epoch
        self.waiting = Waiting()
        self.failure: Exception | None = None
        self.heard = threading.Event()  # a State has come in
        self._spare, self._fetched = spare, (-1, 0)  # version and update of the weights in the spare agent
        self._wanted = threading.Event()  # the player has asked for newer weights
        self._ready = threading.Event()  # the spare agent holds newer weights than the player's
        self._exchange = threading.Lock()  # held while the spare agent, its numbers or the epoch change hands
        self._rollouts: queue.Queue[Rollout | None] = queue.Queue(WAITING_BATCHES)
        self._closing, self._gives_up = threading.Event(), math.inf
        self._sequence = 0
        self._began = time.monotonic()

    def offer(self, rollout: Rollout, *, timeout: float) -> bool:
        """Hands a rollout over; False if too many wait already."""
        try:
            self._rollouts.put(rollout, timeout=timeout)
        except queue.Full:
            return False
        return True

    def look(self) -> None:
        """Asks for newer weights; `swap` gives them once they have come."""
        self._wanted.set()

    def may_play(self) -> bool:
        """Whether a session may begin, counting those that are still on their way."""
        ahead = self._rollouts.unfinished_tasks * self.worker.games * self.state.reuse
        return self.state.allowance is None or self.state.debt + ahead <= self.state.allowance

    def swap(self, agent: Agent) -> tuple[Agent, int, int] | None:
        """(agent, version, update) with newer weights, in exchange for the player's; None if there are none."""
        with self._exchange:
            if not self._ready.is_set():
                return None
            newer, self._spare = self._spare, agent
            self._ready.clear()
            return newer, *self._fetched

    def run(self) -> None:
        system.yield_to_others()
        try:
            while not (self._closing.is_set() and self._rollouts.empty()):
                self._turn()
        except Exception as error:  # whoever plays raises it again: a dead courier must not look like a slow one
            self.failure = error

    def close(self) -> None:
        """Sends what is left, for at most 5 seconds."""
        self._gives_up = time.monotonic() + CLOSING_SECONDS
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._rollouts.put_nowait(None)  # wakes it
        self.join(CLOSING_SECONDS)

    def _turn(self) -> None:
        blobs: list[bytes] = []
        episodes: list[dict[str, Any]] = []
        try:
            rollout = self._rollouts.get(timeout=0.02 if self.waiting.reason else HEARTBEAT_SECONDS)
        except queue.Empty:
            rollout = None
        if rollout is not None:
            human = self.worker.role == "human"
            marks = {"human": "1"} if human else {}
            sessions = rollout.sessions(self.worker.id, self._sequence, **marks)
            blobs = [session.encode() for session in sessions]
            self._sequence += len(blobs)
            ended = [episode for session in sessions for episode in session.episodes]
            row = {"version": rollout.version, **({"human": True} if human else {})}
            episodes = [{"return": total, "length": length, **row} for total, length in ended]
        for part in _parts(blobs):
            self._send(part, episodes)
            episodes = []
        if rollout is not None:
            self._rollouts.task_done()
            self.worker.sessions += len(blobs)
            if human:
                with contextlib.suppress(DatabaseLost):
                    self.database.count(human=len(blobs))
        self._fetch()

    def _send(self, blobs: list[bytes], episodes: list[dict[str, Any]]) -> None:
        while True:
            self.worker.waits_for, self.worker.waits_seconds = self.waiting.reason, self.waiting.seconds
            self.worker.uptime = time.monotonic() - self._began
            try:
                self.state = self.database.append(blobs, worker=self.worker, episodes=episodes)
                self.heard.set()
                return
            except DatabaseLost as error:
                self.worker.error = str(error)
                logger.warning("%s Trying again.", error)
                if time.monotonic() > self._gives_up:
                    return
                time.sleep(RETRY_SECONDS)

    def _fetch(self) -> None:
        if self.state.epoch != self.epoch:  # the server came back empty, or the run was cleared: versions start anew
            with self._exchange:
                self.epoch, self._fetched = self.state.epoch, (-1, 0)
                self._ready.clear()
        if self.state.version <= self._fetched[0] or not self._wanted.is_set() or self._ready.is_set():
            return
        try:
            found = self.database.get_weights(newer_than=self._fetched[0])
            if found is not None:
                weights, numbers = decode_weights(found[1])
                self._spare.set_weights(weights)
                self._fetched = (found[0], numbers["update"])
                self._wanted.clear()
                self._ready.set()
        except (CodecError, SpecError, DatabaseError) as error:  # the old weights stay
            if not isinstance(error, DatabaseError):
                self._fetched = (self.state.version, 0)  # this version will not get better
            self.worker.error = str(error)
            logger.warning("weights were not loaded: %s", error)


def play(
    player: Player,
    courier: Courier,
    *,
    batches: int | None = None,
    sync_every: int = 1,
    realtime: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], None] = lambda: None,
) -> int:
    """Plays until `batches` are pushed, the run is stopped, or `should_stop`; returns the batches played."""
    stop_count, epoch, played = courier.state.stop, courier.epoch, 0
    stages = Ticker(STAGES_SECONDS)
    while (batches is None or played < batches) and not should_stop() and courier.state.stop <= stop_count:
        stop_count = min(stop_count, courier.state.stop)  # a server that came back empty counts from 0 again
        if courier.failure is not None:
            raise courier.failure
        on_batch()
        if courier.epoch != epoch:
            epoch, player.version = courier.epoch, -1
        if player.version < 0 or played % sync_every == 0:
            courier.look()
        if (newer := courier.swap(player.agent)) is not None:
            player.agent, player.version, player.update = newer
        courier.waiting.set(_reason(player, courier, realtime))
        if courier.waiting.reason:
            courier.heard.wait(0.1)
            courier.heard.clear()
            continue
        rollout = player.play()
        worker = courier.worker
        worker.steps, worker.steps_per_second, worker.version = (
            player.rate.total,
            player.rate.per_second(),
            player.version,
        )
        if (faults := sum(pool.faults for pool in player.pools)) > worker.faults:
            worker.error = max(player.pools, key=lambda pool: pool.faults).fault
        worker.faults = faults
        worker.lag = max(0, courier.state.update - player.update)
        if stages.due():
            worker.stages = player.stages.take()
        of_no_version = player.version < 0  # played on in real time, with weights of before the server was emptied
        while of_no_version or not courier.offer(rollout, timeout=0.0 if realtime else 0.2):
            if realtime:
                worker.dropped += rollout.num_games
                break
            courier.waiting.set("the database")
            if should_stop() or courier.failure is not None:
                break
        played += 1
    if courier.failure is not None:
        raise courier.failure
    return played


def _reason(player: Player, courier: Courier, realtime: bool) -> str:
    if player.version < 0 and not (realtime and player.rate.total):  # what has begun in real time cannot wait
        return "a trainer's weights"
    if not realtime and not courier.may_play():
        return f"the trainer, which is {courier.state.debt:.0f} deliveries behind"
    return ""


def _parts(blobs: list[bytes]) -> Iterator[list[bytes]]:
    """What is sent at once; with nothing to send, a heartbeat."""
    part, size = list[bytes](), 0
    for blob in blobs:
        if part and size + len(blob) > AT_ONCE:
            yield part
            part, size = [], 0
        part.append(blob)
        size += len(blob)
    yield part


def _buffers(tree: nest.Tree, length: int, games: int) -> nest.Tree:
    """[length, games, …] for leaves [n, …]."""
    return nest.map(lambda leaf: np.empty((length, games, *np.shape(leaf)[1:]), np.asarray(leaf).dtype), tree)
