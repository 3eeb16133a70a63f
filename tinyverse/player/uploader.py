"""Uploader: carries sessions to the database and newer weights back, beside the stepping loop.

The stepping loop does nothing slow. This thread encodes and pushes sessions, and fetches newer weights into a spare
agent, which the player takes in exchange for its own between two sessions.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from tinyverse.agents.agent import Agent
from tinyverse.core import system
from tinyverse.core.errors import CodecError, DatabaseError, DatabaseLost, SpecError
from tinyverse.core.threads import BackgroundThread
from tinyverse.core.timing import Waiting
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import HEARTBEAT_SECONDS, RETRY_SECONDS, Database, State, Worker
from tinyverse.database.heartbeat import Heartbeat
from tinyverse.player.rollout import Rollout

logger = logging.getLogger(__name__)

CLOSING_SECONDS = 5.0  # that a closing uploader goes on trying
POLL_SECONDS = 0.02  # between two readings of the run's State while the player waits for it
AT_ONCE = 64 << 20  # bytes in one push
WAITING_ROLLOUTS = 4  # that may wait to be pushed; then the player waits, or drops if it is real-time


class _Push(NamedTuple):
    """What is sent at once."""

    blobs: list[bytes]
    episodes: list[dict[str, Any]]
    ends_rollout: bool  # with it, a whole rollout has been sent


class Uploader(BackgroundThread):
    """Pushes rollouts and fetches weights.

    Every push is a heartbeat too and brings back the run's State. A push that the database did not confirm is made
    again: the trainer knows sessions by (player, sequence).

    Attributes:
        run_id: of the run whose versions the weights count in.
        heard: set whenever a State has come in.
    Raises:
        DatabaseLost: by the constructor.
    """

    def __init__(self, database: Database, worker: Worker, spare: Agent) -> None:
        super().__init__(
            "uploader", self._turn, pause=RETRY_SECONDS, on_lost=self._note_lost,
            unfinished=lambda: self._rollouts.unfinished_tasks > 0,
        )  # fmt: skip
        self.database, self.worker, self.waiting = database, worker, Waiting()
        self.heartbeat = Heartbeat(database, worker, self.waiting)
        self.run_id = self.state.run_id
        self.heard = threading.Event()
        self._spare, self._fetched = spare, (-1, 0)  # version and update of the weights in the spare agent
        self._wanted = threading.Event()  # the player has asked for newer weights
        self._ready = threading.Event()  # the spare agent holds newer weights than the player's
        self._exchange = threading.Lock()  # held while the spare agent, its numbers or the run_id change hands
        self._rollouts: queue.Queue[Rollout | None] = queue.Queue(WAITING_ROLLOUTS)  # None wakes a closing thread
        self._unsent: list[_Push] = []
        self._human = worker.role == "human"
        if not self._human:
            self.waiting.set(
                "a trainer's weights"
            )  # until a player says otherwise the thread looks often, not once a second
        self._sequence = 0

    @property
    def state(self) -> State:
        """The run, as the database last reported it."""
        return self.heartbeat.state

    def offer(self, rollout: Rollout, *, timeout: float) -> bool:
        """Hands a rollout over; False if too many wait already."""
        try:
            self._rollouts.put(rollout, timeout=timeout)
        except queue.Full:
            return False
        return True

    def refresh(self) -> None:
        """Asks for newer weights; `swap` gives them once they have come."""
        self._wanted.set()

    def may_play(self) -> bool:
        """Tells whether a session may begin, counting those that are still on their way."""
        ahead = self._rollouts.unfinished_tasks * self.worker.num_envs * self.state.reuse
        return self.state.max_ahead is None or self.state.deficit + ahead <= self.state.max_ahead

    def swap(self, agent: Agent) -> tuple[Agent, int, int] | None:
        """Takes the player's agent and returns (agent, version, update) with newer weights; None if there are none."""
        with self._exchange:
            if not self._ready.is_set():
                return None
            newer, self._spare = self._spare, agent
            self._ready.clear()
            return newer, *self._fetched

    def run(self) -> None:
        system.lower_priority()
        super().run()

    def close(self, seconds: float | None = None) -> None:
        """Sends what is left, for at most 5 seconds."""
        self.closing.set()
        with contextlib.suppress(queue.Full):
            self._rollouts.put_nowait(None)
        super().close(CLOSING_SECONDS if seconds is None else seconds)

    def _turn(self) -> None:
        if not self._unsent:
            rollout = None  # when it is time for a heartbeat
            with contextlib.suppress(queue.Empty):
                rollout = self._rollouts.get(timeout=POLL_SECONDS if self.waiting.reason else HEARTBEAT_SECONDS)
                if rollout is None:
                    self._rollouts.task_done()
            self._unsent = list(self._pushes(rollout))
        while self._unsent:
            self._send(self._unsent[0])
            del self._unsent[0]
        self._fetch()

    def _pushes(self, rollout: Rollout | None) -> Iterator[_Push]:
        """Divides a rollout into pushes of at most `AT_ONCE` bytes; without a rollout, one push is a heartbeat."""
        blobs, episodes, size = list[bytes](), list[dict[str, Any]](), 0
        if rollout is not None:
            marks, person = ({"human": "1"}, {"human": True}) if self._human else ({}, {})
            episodes = [
                {"return": total, "length": length, "version": rollout.version, **person}
                for ended in rollout.episodes
                for total, length in ended
            ]
            for session in rollout.sessions(self.worker.id, self._sequence, **marks):
                blob = session.encode()
                if blobs and size + len(blob) > AT_ONCE:
                    yield _Push(blobs, episodes, False)
                    blobs, episodes, size = [], [], 0
                blobs.append(blob)
                size += len(blob)
            self._sequence += rollout.num_envs
        yield _Push(blobs, episodes, rollout is not None)

    def _send(self, push: _Push) -> None:
        state = self.database.append(push.blobs, worker=self.heartbeat.now(), episodes=push.episodes)
        self.heartbeat.hear(state)
        self.heard.set()
        self.worker.sessions += len(push.blobs)
        if push.ends_rollout:
            self._rollouts.task_done()
        if self._human and push.blobs:
            with contextlib.suppress(DatabaseLost):
                self.database.count(human=len(push.blobs))

    def _note_lost(self, error: DatabaseLost) -> None:
        self.worker.error = str(error)
        logger.warning("%s Trying again.", error)

    def _fetch(self) -> None:
        if self.state.run_id != self.run_id:  # the server came back empty, or the run was cleared: versions start anew
            with self._exchange:
                self.run_id, self._fetched = self.state.run_id, (-1, 0)
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
