"""Feeder: reads every session of a run once, checks it, stores it in the replay and counts what was played.

    database ──▶ read ──▶ check ──▶ Replay

A session may come damaged, of another shape, for the second time, or from a player that sends too many. The feeder then
rejects it: it counts it, names the reason, and nobody owes it anything. Training goes on.
"""

import dataclasses
import logging
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyverse.core.errors import CodecError, DatabaseLost, SettingsError, SpecError
from tinyverse.core.timing import Rate
from tinyverse.database.base import (
    BEGINNING,
    DAMAGED,
    UNSIGNED,
    WRONG_SIGNATURE,
    Database,
    State,
    Worker,
    furthest,
    is_behind,
)
from tinyverse.replay.buffer import Replay
from tinyverse.replay.samplers import Fresh
from tinyverse.trainer.ranks import SingleProcess

logger = logging.getLogger(__name__)

READ_AT_ONCE = 256  # sessions, fewer if they take more than
READ_BYTES = 256 << 20
RECENT = 100  # episodes in the mean return
QUOTA_WINDOW = 1000  # newest sessions that a quota counts
PLACEHOLDERS = {
    UNSIGNED: WRONG_SIGNATURE,
    DAMAGED: "its checksum differs: bytes changed on the way or on the server.",
}
QUARANTINED = "it was in a batch from which NaN was learned"
PLAYERS_KNOWN = 10_000  # players whose sequence numbers are remembered, against duplicates


@dataclasses.dataclass
class Cursor:
    """How far the trainer has come in the run's sessions, as ids of the database.

    Attributes:
        read: the newest session that came.
        counted: sessions up to here are in the counters, though the feeder reads them again after a restart.
        learned: the newest session that this rank learned from. After a restart, sessions up to here are replayed again,
            but they are not fresh.
    """

    read: str = BEGINNING
    counted: str = BEGINNING
    learned: str = BEGINNING


class Feeder:
    """The way of a run's sessions into a replay.

    Args:
        replay: of this rank's share. Every rank takes every session, so that all count alike; each stores its own.
        player_share: see `PlayerQuota`.
    Attributes:
        caught_up: whether the feeder has read all sessions that lay in the database at the start.
        lock: guards the cursor and the state: a cursor of an earlier incarnation of the run must never be reported.
        storing: whoever holds it finds a session stored and the cursor behind it, or neither.
    """

    def __init__(
        self, replay: Replay, database: Database, worker: Worker, ranks: SingleProcess, *, player_share: float = 1.0
    ) -> None:
        self.replay, self.database, self.worker, self.ranks = replay, database, worker, ranks
        self.quota = PlayerQuota(player_share)
        self.cursor, self.state = Cursor(), State()
        self.caught_up = False
        self.newest_of: dict[str, int] = {}  # player -> its newest sequence number
        self.rejected: dict[str, int] = {}  # reason -> sessions
        self.quarantined: set[str] = set()  # `Session.source` of those in a batch that gave NaN
        self.steps = self.episodes = 0  # agent steps that came, episodes that ended in them
        self.step_rate = Rate()
        self.returns: deque[float] = deque(maxlen=RECENT)
        self.lengths: deque[int] = deque(maxlen=RECENT)
        self.lock, self.storing = threading.RLock(), threading.RLock()
        self._limit = READ_AT_ONCE  # sessions asked for

    def feed(self, update: int = 0, wait: float = 0.0) -> int:
        """Reads new sessions into the replay, waiting at most so many seconds for the first; returns how many there were.

        Args:
            update: the trainer's now, against which lag is measured.
        """
        limit = min(self._limit, max(1, READ_BYTES // self.replay.spec.nbytes))
        try:
            entries, state = self.database.read(self.cursor.read, limit, wait)
        except DatabaseLost:
            self._limit = max(1, limit // 4)  # what is larger than a session can be may be too large for one answer
            raise
        self._limit = min(READ_AT_ONCE, 2 * self._limit)
        if not state.run_id or state.run_id != self.state.run_id:
            self._begin_anew(state)
            return 0
        for session_id, blob in entries:
            if reason := self.take(session_id, blob, update):
                self.worker.error = f"a session was rejected: {reason}"
        if len(entries) < limit:
            self.at_the_end(state.inserted)
        self.state = state
        return len(entries)

    def take(self, session_id: str, blob: bytes, update: int = 0) -> str:
        """Stores the session with an id above all that were taken before; returns why it was rejected, or ""."""
        with self.storing:
            self.cursor.read = session_id
            try:
                session = self.replay.spec.decode(blob)
            except (CodecError, SpecError) as error:
                return self._reject(PLACEHOLDERS.get(blob) or str(error))
            player, sequence = session.metadata.get("player", ""), int(session.metadata["sequence"])
            if sequence <= self.newest_of.get(player, -1):
                return self._reject("it came twice")
            self.newest_of[player] = sequence
            while len(self.newest_of) > PLAYERS_KNOWN:
                del self.newest_of[next(iter(self.newest_of))]
            if session.source in self.quarantined:
                return self._reject(QUARANTINED)
            if not self.quota.admit(player):
                return self._reject("its player sends more than its share")
            if self.ranks.is_mine(player, sequence):
                seen = is_behind(session_id, self.cursor.learned)
                self.replay.add(session, session_id=session_id, update=update, seen=seen)
            else:
                self.replay.write_off()
            if not is_behind(session_id, self.cursor.counted):
                steps = int(session.valid.sum())
                self.steps += steps
                self.step_rate.add(steps)
                for total, length in () if session.human else session.episodes:  # the curve is the agent's
                    self.returns.append(total)
                    self.lengths.append(length)
                    self.episodes += 1
        return ""

    def _reject(self, reason: str) -> str:
        reason = reason[:200] if len(self.rejected) < 100 else "for yet another reason"
        if reason not in self.rejected:
            logger.warning("a session was rejected: %s", reason)
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.replay.write_off()
        return reason

    def at_the_end(self, inserted: int) -> None:
        """Nothing is left to be read: of the sessions inserted so far, those that did not come are lost."""
        if not self.caught_up or inserted < self.replay.limiter.inserted:
            self.replay.catch_up(inserted)
            self.caught_up = True
        else:
            self.replay.write_off(inserted - self.replay.limiter.inserted)

    def note_learned(self) -> None:
        """Moves the cursor up to the newest session that the replay has drawn."""
        with self.lock:
            self.cursor.learned = furthest(self.cursor.learned, self.replay.newest_sampled)

    def go_on_from(self, learned: str) -> None:
        """Sessions up to here were counted and learned from before the restart."""
        self.cursor.counted = self.cursor.learned = learned
        if isinstance(self.replay.sampler, Fresh):
            self.cursor.read = learned  # each session once: the feeder need not even read those again

    def _begin_anew(self, state: State) -> None:
        """The run is gone, or another incarnation of it is there: no cursor means anything any more. The counters go on."""
        with self.lock, self.storing:
            self.cursor = Cursor()
            self.replay.forget_positions()
            self.newest_of.clear()
            self.caught_up = False
            self.state = state

    def state_dict(self) -> dict[str, Any]:
        """The counters, and the cursor that belongs to the replay's sessions."""
        return {**self.counters(), "position": self.cursor.read, "newest_of": dict(self.newest_of)}

    def counters(self) -> dict[str, Any]:
        return {
            "step": self.steps, "episodes": self.episodes, "returns": list(self.returns), "lengths": list(self.lengths),
        }  # fmt: skip

    def load_counters(self, state: Mapping[str, Any]) -> None:
        """Takes what `counters` gave. The first checkpoints there were have no lengths."""
        self.steps, self.episodes = state["step"], state["episodes"]
        self.returns, self.lengths = (deque(state.get(name, []), RECENT) for name in ("returns", "lengths"))

    def load_cursor(self, state: Mapping[str, Any]) -> None:
        """Reads on from there; for a replay that has been restored, too."""
        self.cursor.read, self.newest_of = state["position"], dict(state["newest_of"])

    def row(self) -> dict[str, Any]:
        """What was played, for logs; of the newest 100 episodes the mean, and the tenth above and below."""
        low, high = np.percentile(self.returns, (10, 90)).tolist() if self.returns else (None, None)
        return {
            "play/return": float(np.mean(self.returns)) if self.returns else None,
            "play/return_low": low, "play/return_high": high,
            "play/length": float(np.mean(self.lengths)) if self.lengths else None,
            "play/episodes": self.episodes, "play/steps_per_second": self.step_rate.per_second(),
            "replay/rejected": sum(self.rejected.values()),
        }  # fmt: skip


class PlayerQuota:
    """How much of what is learned from may come from one player while others play.

    A player that went wild floods the replay with its own sessions. The quota counts the newest arrivals, refused ones
    too: so a player that is alone, or alone again, is free. It helps against mistakes, not malice: a player says itself
    who it is.

    Args:
        most: the share (0 … 1) of the admitted sessions that one player may have; 1: any.
        window: newest sessions that are counted.
    """

    def __init__(self, most: float = 1.0, window: int = QUOTA_WINDOW) -> None:
        if not 0 < most <= 1:
            raise SettingsError(f"player_share is {most}; give more than 0 and at most 1, which admits all.")
        self.most = most
        self._came: deque[tuple[str, bool]] = deque(maxlen=window)
        self._players: Counter[str] = Counter()  # sessions that came
        self._admitted: Counter[str] = Counter()

    def admit(self, player: str) -> bool:
        """Whether the trainer keeps the next session of this player."""
        if self.most >= 1:
            return True
        if len(self._came) == self._came.maxlen:
            oldest, was_admitted = self._came.popleft()
            self._players[oldest] -= 1
            self._admitted[oldest] -= was_admitted
            if not self._players[oldest]:
                del self._players[oldest], self._admitted[oldest]
        others = self._admitted.total() - self._admitted[player]
        alone = self._players[player] == len(self._came)
        admitted = alone or self._admitted[player] + 1 <= max(1.0, self.most * (self._admitted[player] + 1 + others))
        self._came.append((player, admitted))
        self._players[player] += 1
        self._admitted[player] += admitted
        return admitted
