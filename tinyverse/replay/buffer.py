"""Replay: the newest sessions as preallocated tensors on the trainer's device, and batches drawn from them.

Each session crosses the network once, however often the trainer learns from it. A feeder thread adds sessions, and the
trainer samples by indexing. Rows of a session stay together, so a batch is cut as slices of `length` rows.
"""

import dataclasses
import secrets
import threading
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError
from tinyverse.core.session import FIELDS, Session, SessionSpec, field_of, rows_beyond
from tinyverse.core.text import counted
from tinyverse.database.base import BEGINNING, furthest, is_behind
from tinyverse.replay.config import ReplayConfig
from tinyverse.replay.rate_limiter import RateLimiter
from tinyverse.replay.ring import Ring
from tinyverse.replay.samplers import Sampler


class Slots:
    """What a replay knows of the session in each slot, beside its arrays.

    Attributes:
        filled: [size] bool.
        update: [size] the trainer's, when it made the weights that played the session.
        human: [size] bool: a person played it.
        count: [size] samples so far.
        session_id: its id in the database.
        source: `Session.source`.
        written: sessions so far. A session's number is how many were written before it.
    """

    def __init__(self, size: int) -> None:
        self.filled = np.zeros(size, bool)
        self.update = np.zeros(size, np.int64)
        self.human = np.zeros(size, bool)
        self.count = np.zeros(size, np.int64)
        self.session_id = [BEGINNING] * size
        self.source = [""] * size
        self.written = 0

    def __len__(self) -> int:
        return len(self.filled)

    @property
    def oldest_number(self) -> int:
        """The least number that a session may have which was not overwritten."""
        return self.written - len(self)

    def numbers(self, slots: np.ndarray) -> np.ndarray:
        """The numbers of the sessions in these slots: they tell a session from the next one in its place."""
        newest = self.written - 1
        return newest - (newest - slots) % len(self)


class Replay:
    """A ring of sessions on a device, the sampler that picks from them, and the limiter that says how often it may.

    Attributes:
        newest_sampled: id in the database of the newest session that was drawn.
        lags: of the sessions of each of the last 100 batches, in updates.
        dropped: sessions that expired, and those that were overwritten unused.
        series: within it, a session's number is its own.
        lock: guards all of this.
    """

    def __init__(
        self, spec: SessionSpec, config: ReplayConfig, sampler: Sampler, *, device: str = "cpu", seed: int = 0
    ) -> None:
        if sampler.reuse is not None and config.reuse not in (None, sampler.reuse):
            raise SettingsError(
                f"{type(sampler).__name__} delivers each session {counted(sampler.reuse, 'time')} by definition; reuse {config.reuse:g} needs another sampler."
            )
        self.config = dataclasses.replace(config, reuse=sampler.reuse) if sampler.reuse is not None else config
        self.spec, self.sampler, self.device = spec, sampler, torch.device(device)
        self.limiter = RateLimiter(self.config, None if sampler.reuse is None else sampler.pending)
        self.slots = Slots(self.config.buffer_size)
        sampler.prepare(len(self.slots), self.device)
        self.ring = Ring(spec, len(self.slots), self.device)
        self.random = np.random.default_rng(seed)
        self.began = False  # learning
        self.newest_sampled = BEGINNING
        self.lags: deque[np.ndarray] = deque(maxlen=100)
        self.dropped = {"expired": 0, "unused": 0}
        self.series = secrets.token_hex(4)
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return int(self.slots.filled.sum())

    @property
    def lag(self) -> float:
        """Mean lag of recent batches, in updates."""
        return float(np.concatenate(lags).mean()) if (lags := tuple(self.lags)) else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of device memory set aside."""
        return self.ring.bytes.nbytes

    def add(self, session: Session, *, session_id: str = BEGINNING, update: int = 0, seen: bool = False) -> None:
        """Stores a session over the oldest one, unless it is too old.

        Args:
            session_id: its id in the database.
            update: the trainer's now, against which lag is measured.
            seen: the trainer learned from it before a restart: replay again, but not fresh.
        """
        made_at = int(session.metadata["update"])
        with self.lock:
            if self.config.max_lag is not None and update - made_at > self.config.max_lag and not session.human:
                self.limiter.write_off()
                self.dropped["expired"] += 1
                return
            about = self.slots
            while self.sampler.keeps(slot := about.written % len(about)):
                about.written += 1
            about.written += 1
            if about.filled[slot]:
                self.sampler.remove(slot)
                self.dropped["unused"] += int(about.count[slot] == 0)
            self.ring.write(slot, session.arrays)
            about.filled[slot], about.update[slot], about.human[slot] = True, made_at, session.human
            about.session_id[slot], about.source[slot], about.count[slot] = session_id, session.source, seen
            self.sampler.insert(slot, seen, session.human)
            self.limiter.inserted += 1
            self.limiter.forgive(len(self))

    def discard(self, sources: Collection[str]) -> None:
        """Removes the sessions with these `Session.source`."""
        with self.lock:
            about = self.slots
            self._remove([slot for slot in np.flatnonzero(about.filled).tolist() if about.source[slot] in sources])

    def write_off(self, count: int = 1) -> None:
        """Counts sessions that came and are not stored here."""
        with self.lock:
            self.limiter.write_off(count)

    def catch_up(self, inserted: int) -> None:
        """Everything inserted so far was read after a restart; see `RateLimiter.restart`."""
        with self.lock:
            self.limiter.restart(inserted, len(self))

    def sample(self, update: int = 0, *, length: int | None = None, burn_in: int = 0) -> Batch | None:
        """A batch of slices of `burn_in + length` rows (default: whole sessions), or None while `waits_for` says why.

        Slices shorter than the session begin at a random row. One that begins at row 0 has its stored state; any
        other begins with an empty one, which is what `burn_in` rows are for.
        """
        rows = self.spec.length if length is None else burn_in + length
        if not 0 < rows <= self.spec.length:
            raise SettingsError(f"slices of {rows} rows cannot be cut from sessions of {self.spec.length}.")
        with self.lock:
            self._expire(update)
            if self.waits_for():
                return None
            self.began = True
            slots = self.sampler.draw(self.config.batch_size, self.random)
            np.add.at(self.slots.count, slots, 1)
            self.limiter.drawn += len(slots)
            self.newest_sampled = furthest(self.newest_sampled, *(self.slots.session_id[slot] for slot in slots))
            self.lags.append(update - self.slots.update[slots])
            starts = self.random.integers(0, self.spec.length - rows + 1, len(slots))
            return self._cut(slots, starts, rows, burn_in, update)

    def waits_for(self) -> str:
        """Why no batch can be drawn now, in words; "" when one can."""
        with self.lock:
            if (filling := self.filling) is not None:
                return f"{filling[0]} of {filling[1]} sessions"
            if missing := self.sampler.missing(self.config.batch_size):
                return counted(missing, "more new session")
            if missing := self.limiter.missing:
                return f"{counted(missing, 'more session')} (reuse {self.limiter.reuse:g} is reached)"
        return ""

    @property
    def filling(self) -> tuple[int, int] | None:
        """(sessions kept, sessions wanted) before learning begins; None from then on."""
        kept, wanted = len(self), max(self.config.min_sessions, self.config.batch_size)
        return None if self.began or kept >= wanted else (kept, wanted)

    def row(self) -> dict[str, Any]:
        """What is stored, and how old it was when it was drawn, for logs."""
        return {
            "replay/sessions": len(self), "replay/bytes_per_session": self.nbytes // len(self.slots), "replay/lag": self.lag,
            **{f"replay/{name}": count for name, count in self.dropped.items()},
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """What is more than one number, for histograms: lags in updates of the sessions of recent batches [N]."""
        return {"replay/lags": np.concatenate(self.lags)} if self.lags else {}

    def set_priorities(self, slots: torch.Tensor, priorities: torch.Tensor) -> None:
        """Passes new priorities [B] of a batch's `slots` on to the sampler, but for sessions overwritten since."""
        with self.lock:
            kept = slots >= self.slots.oldest_number
            priorities = torch.where(kept, priorities.to(slots.device), torch.nan)
            self.sampler.set_priorities(slots % len(self.slots), priorities)

    def mark_seen(self, session_id: str) -> None:
        """The trainer learned from all sessions up to this one, in updates that were lost: they are not fresh."""
        with self.lock:
            for slot in np.flatnonzero(self.slots.filled).tolist():
                if is_behind(self.slots.session_id[slot], session_id):
                    self.sampler.remove(slot)
                    self.sampler.insert(slot, seen=True)
                    self.slots.count[slot] = max(1, self.slots.count[slot])

    def forget_positions(self) -> None:
        """Session ids of an earlier incarnation of the run mean nothing in a new one."""
        with self.lock:
            self.slots.session_id = [BEGINNING] * len(self.slots)
            self.newest_sampled = BEGINNING

    def _expire(self, update: int) -> None:
        if self.config.max_lag is None:
            return
        about = self.slots
        too_old = (about.update < update - self.config.max_lag) & ~about.human  # what a person did does not age
        expired = np.flatnonzero(about.filled & too_old).tolist()
        self.dropped["expired"] += len(expired)
        self._remove(expired)

    def _remove(self, slots: Sequence[int]) -> None:
        self.slots.filled[slots] = False
        for slot in slots:
            self.sampler.remove(slot)
        self.limiter.forgive(len(self))

    def _cut(self, slots: np.ndarray, starts: np.ndarray, rows: int, burn_in: int, update: int) -> Batch:
        index = torch.from_numpy(slots).to(self.device, non_blocking=True)
        if rows == self.spec.length:
            taken = self.ring.take(index)
            leaves = {name: leaf if rows_beyond(name) is None else leaf.transpose(0, 1) for name, leaf in taken.items()}
        else:
            leaves = self._slices(index, torch.from_numpy(starts).to(self.device, non_blocking=True), rows)
        return Batch(
            **{name: field_of(leaves, name) for name in FIELDS},
            weights=self.sampler.weights(slots).to(self.device),
            lag=torch.from_numpy(update - self.slots.update[slots]).to(self.device),
            slots=torch.from_numpy(self.slots.numbers(slots)).to(self.device, non_blocking=True),
            burn_in=burn_in,
            human=torch.from_numpy(self.slots.human[slots]).to(self.device, non_blocking=True),
            sources=tuple(self.slots.source[slot] for slot in slots),
        )

    def _slices(self, index: torch.Tensor, start: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
        """`rows` rows from `start` [B] on; the recurrent state is empty where that is not the session's beginning."""
        leaves = {}
        with self.ring.reading() as fields:
            for name, tensor in fields.items():
                if (beyond := rows_beyond(name)) is None:
                    state = tensor[index]
                    begins_late = start.reshape(-1, *[1] * (state.ndim - 1)) > 0
                    leaves[name] = torch.where(begins_late, torch.zeros_like(state), state)
                else:
                    leaves[name] = tensor[index, start + torch.arange(rows + beyond, device=self.device)[:, None]]
        return leaves
