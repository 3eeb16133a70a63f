"""Ranks: what one trainer process does alone, and several do together (see `core.distributed`).

Each rank reads every session, and so knows all that was played, but stores its own share only. Ranks step together or wait
together. Rank 0 alone publishes and writes files. It reports the furthest cursor of any rank: after a restart no rank
learns again from a session, though the others lose those that they had not come to yet.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tinyverse.core import distributed
from tinyverse.core.errors import SettingsError
from tinyverse.database.base import BEGINNING, furthest

if TYPE_CHECKING:
    from tinyverse.algorithms.learner import Learner
    from tinyverse.trainer.feeder import Feeder


class Agreement(NamedTuple):
    """Where all ranks stand before an update."""

    has_batch: bool  # every rank has one
    is_bad: bool = False  # a rank learned NaN
    waits_for: str = ""  # for a rank that has a batch: the one that has none, in words


class SingleProcess:
    """A trainer of one process: nobody else is asked, and nothing is packed.

    Attributes:
        deficit_elsewhere: samples owed by the other ranks, at the last agreement.
    """

    size = 1
    is_rank_zero = True
    deficit_elsewhere = 0.0

    def check(self, learner: Learner) -> None:
        """Raises SettingsError for a learner that cannot learn on so many ranks."""

    def agree(self, has_batch: bool, is_bad: bool, feeder: Feeder) -> Agreement:
        """Where all ranks stand. Collective, before each update."""
        return Agreement(has_batch, is_bad)

    def any_rank(self, true: bool) -> bool:
        """Whether it is true on any rank. Collective."""
        return true

    def gather(self, words: Sequence[str]) -> list[str]:
        """Those of all ranks. Collective."""
        return list(words)

    def furthest(self, learned: str, run_id: str) -> str:
        """The furthest cursor that any rank has learned up to, in this incarnation of the run."""
        return learned

    def is_mine(self, player: str, sequence: int) -> bool:
        """Whether this rank stores the session."""
        return True


class Ranks(SingleProcess):
    """One of several processes that learn as one."""

    def __init__(self) -> None:
        self.size, self.is_rank_zero = distributed.size(), distributed.is_rank_zero()
        self._furthest = ("", BEGINNING)  # (run id, cursor) at the last agreement

    def check(self, learner: Learner) -> None:
        if not learner.distributed:
            raise SettingsError(
                f"{type(learner).__name__} cannot learn on {self.size} ranks: it does not average over them. Use a "
                "TorchLearner, whose optimizer does, or train without --gpus."
            )

    def agree(self, has_batch: bool, is_bad: bool, feeder: Feeder) -> Agreement:
        limiter = feeder.replay.limiter
        with feeder.lock:
            run_id, learned = feeder.state.run_id, feeder.cursor.learned
        mark = zlib.crc32(run_id.encode())
        rows = distributed.exchange(has_batch, is_bad, limiter.deficit, mark, *map(int, learned.split("-")))
        ready, deficits = [row[0] for row in rows], [row[2] for row in rows]
        # players are held back only when the poorest rank has enough, or it would wait for ever
        owed = sum(deficits) if limiter.config.reuse is None else len(deficits) * min(deficits)
        self.deficit_elsewhere = owed - deficits[distributed.rank()]
        cursors = (f"{int(row[4])}-{int(row[5])}" for row in rows if row[3] == mark)  # others: another incarnation
        self._furthest = (run_id, furthest(*cursors))
        waits = has_batch and not all(ready)
        waits_for = f"rank {ready.index(0)}, which waits for sessions of its own" if waits else ""
        return Agreement(all(ready), any(row[1] for row in rows), waits_for)

    def any_rank(self, true: bool) -> bool:
        return distributed.any_rank(true)

    def gather(self, words: Sequence[str]) -> list[str]:
        return [word for rank in range(self.size) for word in distributed.broadcast(list(words), rank)]

    def furthest(self, learned: str, run_id: str) -> str:
        agreed_in, agreed = self._furthest
        return furthest(learned, agreed) if agreed_in == run_id else learned

    def is_mine(self, player: str, sequence: int) -> bool:
        return distributed.is_mine(player, sequence)


def this_process() -> SingleProcess:
    """One of several ranks where a launcher started this process as such."""
    return Ranks() if distributed.size() > 1 else SingleProcess()
