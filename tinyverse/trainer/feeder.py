"""Intake: takes every session of a run once into the trainer's replay, and counts what was played.

A session may come damaged, of another shape, for the second time, or from a player that sends too many. It is then
rejected: counted, named, owed to nobody; training goes on.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyverse.core import distributed
from tinyverse.core.errors import CodecError, SpecError
from tinyverse.core.session import Session
from tinyverse.core.timing import Rate
from tinyverse.database.cursor import BEGINNING, is_behind
from tinyverse.database.signing import UNSIGNED, WRONG_SIGNATURE
from tinyverse.replay.buffer import Replay
from tinyverse.replay.samplers import Fresh
from tinyverse.trainer.player_quota import Shares

logger = logging.getLogger(__name__)

RECENT = 100  # episodes in the mean return
PLAYERS_KNOWN = 10_000  # whose sequence numbers are remembered, against duplicates


class Intake:
    """The way of a run's sessions into a replay.

    Args:
        replay: of this rank's share. Every rank takes every session, so that all count alike; each stores its own.
        player_share: of the sessions kept, how much one player may have while others play; see `Shares`.

    Attributes:
        position: how far the run's streams were read.
        counted: up to here, steps and episodes are in the counters, though sessions are read again after a restart.
        learned: up to here, sessions had been learned from before the restart: replayed again, but not fresh.
        caught_up: whether all sessions that lay in the database at the start have been read.
        lock: who holds it finds a session and its place in the stream taken, or neither.
    """

    def __init__(self, replay: Replay, player_share: float = 1.0) -> None:
        self.replay, self.shares = replay, Shares(player_share)
        self.position = self.counted = self.learned = BEGINNING
        self.caught_up = False
        self.newest_of: dict[str, int] = {}  # player -> its newest sequence number
        self.rejected: dict[str, int] = {}  # reason -> sessions
        self.steps = self.episodes = 0  # agent steps received, episodes that ended in them
        self.step_rate = Rate()
        self.returns: deque[float] = deque(maxlen=RECENT)
        self.lengths: deque[int] = deque(maxlen=RECENT)
        self.lock = threading.RLock()

    def take(self, position: str, blob: bytes, update: int = 0) -> str:
        """Stores one session; returns why it was rejected, or "".

        Args:
            position: where it lies in the database, behind all that were taken before.
            update: the trainer's now, against which lag is measured.
        """
        with self.lock:
            self.position = position
            try:
                session = self.replay.spec.decode(blob)
            except (CodecError, SpecError) as error:
                return self._reject(WRONG_SIGNATURE if blob == UNSIGNED else str(error))
            player, sequence = session.metadata.get("player", ""), int(session.metadata["sequence"])
            if sequence <= self.newest_of.get(player, -1):
                return self._reject("it came twice")
            self.newest_of[player] = sequence
            while len(self.newest_of) > PLAYERS_KNOWN:
                del self.newest_of[next(iter(self.newest_of))]
            if not self.shares.admit(player):
                return self._reject("its player sends more than its share")
            if distributed.is_mine(player, sequence):
                self.replay.add(session, position=position, update=update, seen=is_behind(position, self.learned))
            else:
                self.replay.forget(1)  # another rank's
            if not is_behind(position, self.counted):
                self._count(session)
        return ""

    def _count(self, session: Session) -> None:
        steps = int(session.alive.sum())
        self.steps += steps
        self.step_rate.add(steps)
        for total, length in () if session.human else session.episodes:  # the curve is the agent's
            self.returns.append(total)
            self.lengths.append(length)
            self.episodes += 1

    def _reject(self, reason: str) -> str:
        reason = reason[:200] if len(self.rejected) < 100 else "for yet another reason"
        if reason not in self.rejected:
            logger.warning("a session was rejected: %s", reason)
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.replay.forget(1)
        return reason

    def at_the_end(self, inserted: int) -> None:
        """Nothing is left to be read: of the sessions inserted so far, those that did not come are lost."""
        if not self.caught_up or inserted < self.replay.received:
            self.replay.restart_books(inserted)
            self.caught_up = True
        else:
            self.replay.forget(inserted - self.replay.received)

    # -- over a restart -----------------------------------------------------------------------------------------

    def go_on_from(self, position: str) -> None:
        """What lies up to this position was counted and learned from before the restart."""
        self.counted = self.learned = position
        if isinstance(self.replay.sampler, Fresh):
            self.position = position  # at most once: what was learned from is not even read

    def begin_anew(self) -> None:
        """The run's streams are new and empty: no place in those before means anything. The counters go on."""
        with self.lock:
            self.position = self.counted = self.learned = BEGINNING
            self.replay.forget_positions()
            self.newest_of.clear()
            self.caught_up = False

    def state_dict(self) -> dict[str, Any]:
        """The counters, and the place in the streams that belongs to the replay's sessions."""
        return {**self.counters(), "position": self.position, "newest_of": dict(self.newest_of)}

    def counters(self) -> dict[str, Any]:
        return {
            "step": self.steps, "episodes": self.episodes, "returns": list(self.returns), "lengths": list(self.lengths),
        }  # fmt: skip

    def load_counters(self, state: Mapping[str, Any]) -> None:
        """Takes what `counters` gave; of the first checkpoints there were, which have no lengths, too."""
        self.steps, self.episodes = state["step"], state["episodes"]
        self.returns, self.lengths = (deque(state.get(name, []), RECENT) for name in ("returns", "lengths"))

    def load_place(self, state: Mapping[str, Any]) -> None:
        """Reads on from there; for where the replay has been restored, too."""
        self.position, self.newest_of = state["position"], dict(state["newest_of"])

    # -- numbers ------------------------------------------------------------------------------------------------

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
