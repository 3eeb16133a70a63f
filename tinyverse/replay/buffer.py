"""Replay: the newest sessions as preallocated tensors on the trainer's device.

Each session crosses the network once, however often it is learned from. A feeder thread adds; the trainer samples by
indexing. Rows of a session stay together, so a batch is cut as slices of `length` rows.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from tinyverse.core import nest
from tinyverse.core.batch import Batch
from tinyverse.core.errors import SettingsError, SpecError
from tinyverse.core.session import FIELDS, Session, SessionSpec, rows_beyond
from tinyverse.core.text import counted
from tinyverse.database.position import BEGINNING, furthest, is_behind
from tinyverse.replay.config import Flow
from tinyverse.replay.files import Sessions
from tinyverse.replay.ring import Ring
from tinyverse.replay.samplers import Sampler


class Replay:
    """A ring of sessions on a device, and the books of who was delivered how often.

    Invariant that keeps players and trainer from waiting for each other: the debt, `reuse · received − delivered`, is
    never more than `reuse` for each session in memory (or one batch, where that is more), and nothing where memory is
    empty. What is lost, expired or rejected is counted as delivered.
    """

    def __init__(self, spec: SessionSpec, flow: Flow, sampler: Sampler, *, device: str = "cpu", seed: int = 0) -> None:
        if sampler.reuse is not None and flow.reuse not in (None, sampler.reuse):
            raise SettingsError(
                f"{type(sampler).__name__} delivers each session {counted(sampler.reuse, 'time')} by definition; reuse {flow.reuse:g} needs another sampler."
            )
        self.spec, self.sampler, self.device = spec, sampler, torch.device(device)
        self.flow = dataclasses.replace(flow, reuse=sampler.reuse) if sampler.reuse is not None else flow
        size = self.flow.buffer_size
        sampler.prepare(size, self.device)
        self._ring = Ring(spec, size, self.device)
        self._filled = np.zeros(size, bool)
        self._update = np.zeros(size, np.int64)  # of the trainer, when the weights that played the session were made
        self._human = np.zeros(size, bool)
        self._count = np.zeros(size, np.int64)  # deliveries so far
        self._position = [BEGINNING] * size
        self._written = 0  # sessions so far
        self.newest_delivered = BEGINNING  # position of the newest session that was learned from
        self.lag = 0.0  # mean of the last batch, in updates
        self.lags = np.zeros(0, np.int64)  # of each of its sessions
        self._began = self._restored = False
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.series = secrets.token_hex(4)  # within it, a session's number is its own
        self.received = 0
        self._delivered = 0.0
        self.dropped = {"expired": 0, "unused": 0}

    def __len__(self) -> int:
        return int(self._filled.sum())

    @property
    def delivered(self) -> float:
        """Deliveries so far, as the players' allowance counts them."""
        if self.sampler.reuse is not None:  # whatever does not wait for its first delivery is settled
            return self.sampler.reuse * (self.received - self.sampler.pending())
        return self._delivered

    @property
    def debt(self) -> float:
        """Deliveries owed to the sessions received so far; below 0 where nothing bounds the reuse."""
        return self.received * (self.flow.reuse or 1.0) - self.delivered

    @property
    def nbytes(self) -> int:
        """Bytes of device memory set aside."""
        return self._ring.bytes.nbytes

    def add(self, session: Session, *, position: str = BEGINNING, update: int = 0, seen: bool = False) -> None:
        """Stores a session over the oldest one, unless it is too old.

        Args:
            position: where it lies in the database.
            update: the trainer's now, against which lag is measured.
            seen: it was learned from before a restart: replay again, but not fresh.
        """
        made_at = int(session.metadata["update"])
        with self._lock:
            self.received += 1
            if self.flow.max_lag is not None and update - made_at > self.flow.max_lag and not session.human:
                self._delivered += self.flow.reuse or 1.0
                self.dropped["expired"] += 1
                return
            while self.sampler.keeps(slot := self._written % self.flow.buffer_size):
                self._written += 1
            self._written += 1
            self._write(slot, session.arrays)
            self._update[slot], self._position[slot], self._human[slot] = made_at, position, session.human
            self._count[slot] = seen
            self.sampler.insert(slot, seen, session.human)
            self._limit_debt()

    def forget(self, count: int) -> None:
        """Counts sessions that arrived and will never be delivered: lost, rejected or too old."""
        with self._lock:
            self.received += count
            self._delivered += count * (self.flow.reuse or 1.0)

    def restart_books(self, inserted: int) -> None:
        """After a restart: of the sessions inserted so far, nothing is owed but what a restored memory still owed, and
        what came in since. All others are settled."""
        with self._lock:
            reuse = self.flow.reuse or 1.0
            owed = reuse * self.received - self._delivered if self._restored else 0.0
            self.received, self._restored = inserted, False
            self._delivered = reuse * inserted - owed
            self._limit_debt()

    def waits_for(self) -> str:
        """Why no batch can be drawn now, in words; "" when one can."""
        with self._lock:
            return self._waits_for()

    def sample(self, update: int = 0, *, length: int | None = None, burn_in: int = 0) -> Batch | None:
        """A batch of slices of `burn_in + length` rows (default: whole sessions), or None while `waits_for` says so.

        Slices shorter than the session begin at a random row. One that begins at row 0 has its stored memory; any
        other begins with empty memory, which is what `burn_in` rows are for.
        """
        rows = self.spec.length if length is None else burn_in + length
        if not 0 < rows <= self.spec.length:
            raise SettingsError(f"slices of {rows} rows cannot be cut from sessions of {self.spec.length}.")
        with self._lock:
            self._expire(update)
            if self._waits_for():
                return None
            self._began = True
            slots = self.sampler.draw(self.flow.batch, self._random)
            np.add.at(self._count, slots, 1)
            self._delivered += len(slots)
            self._note_newest(slots)
            self.lags = update - self._update[slots]
            self.lag = float(np.mean(self.lags))
            starts = self._random.integers(0, self.spec.length - rows + 1, len(slots))
            return self._cut(slots, starts, rows, burn_in, update)

    # -- over a restart -----------------------------------------------------------------------------------------

    @property
    def random_state(self) -> str:
        """Of the generator that draws, as JSON."""
        return json.dumps(self._random.bit_generator.state)

    @random_state.setter
    def random_state(self, state: str) -> None:
        self._random.bit_generator.state = json.loads(state)

    @property
    def kept_nbytes(self) -> int:
        """Bytes of the sessions that `state_dict` would give now."""
        with self._lock:
            return len(self._kept()) * self._ring.bytes.shape[1]

    def state_dict(self) -> dict[str, Any]:
        """The books, copied; the bytes of the sessions that they tell of are read by `sessions`, also later."""
        with self._lock:
            slots = self._kept()
            names = ("series", "received", "dropped", "newest_delivered", "_delivered", "_written", "_began")
            return {
                "spec": self.spec.to_json(), "size": self.flow.buffer_size, "reuse": self.flow.reuse,
                "sampler": type(self.sampler).__name__, "sampling": self.sampler.state_dict(),
                "numbers": self._numbers(slots), "updates": self._update[slots], "counts": self._count[slots],
                "human": self._human[slots],
                "positions": " ".join(self._position[slot] for slot in slots),
                **{name: getattr(self, name) for name in names},
            }  # fmt: skip

    def sessions(self, state: Mapping[str, Any]) -> Sessions:
        """The sessions that a `state_dict` tells of. They are read piece by piece while others come, so that there is
        no copy of all; one that was written over before its turn is gone."""

        def read(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with self._lock:
                there = numbers >= self._written - self.flow.buffer_size
                return self._ring.rows(numbers % self.flow.buffer_size), there

        return Sessions(self.series, torch.from_numpy(state["numbers"]), self._ring.bytes.shape[1], read)

    def load_state_dict(self, state: Mapping[str, Any], sessions: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Takes what `state_dict` gave, into an empty memory on any device. One of another size takes the newest; for
        another sampler, sessions that were delivered are no longer fresh.

        Args:
            sessions: (numbers [m], bytes [m, width]), as they were stored.
        Raises:
            SpecError: the sessions are not this run's.
        """
        if state["spec"] != self.spec.to_json():
            raise SpecError("the stored sessions are of another shape than this experiment's.")
        size = self.flow.buffer_size
        numbers = np.asarray(state["numbers"])[-size:]
        same = state["size"] == size
        slots = numbers % size if same else np.arange(len(numbers))
        with self._lock:
            there = self._put(numbers, slots, sessions)
            self._filled[slots] = there
            for kept, name in ((self._update, "updates"), (self._count, "counts"), (self._human, "human")):
                kept[slots] = np.asarray(state[name])[-size:]
            for slot, position in zip(slots, state["positions"].split()[-size:], strict=True):
                self._position[slot] = position
            self.series, self._written = (state["series"], state["_written"]) if same else (self.series, len(numbers))
            self.newest_delivered, self.dropped = state["newest_delivered"], dict(state["dropped"])
            self.received, self._delivered, self._began = state["received"], state["_delivered"], state["_began"]
            self._restored = state["reuse"] == self.flow.reuse
            if state["sampling"] is not None and state["sampler"] == type(self.sampler).__name__:
                before = (numbers % state["size"])[there].tolist()
                moved = dict(zip(before, slots[there].tolist(), strict=True))
                self.sampler.load_state_dict(state["sampling"], moved)
                return
            for slot in slots[there].tolist():
                self.sampler.insert(slot, bool(self._count[slot]), bool(self._human[slot]))

    def _put(
        self, numbers: np.ndarray, slots: np.ndarray, sessions: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> np.ndarray:
        """Writes those of the sessions that have these numbers [n] into these slots [n]; [n] bool: which were given."""
        place, there = {number: index for index, number in enumerate(numbers.tolist())}, np.zeros(len(numbers), bool)
        for given, rows in sessions:
            places = np.array([place.get(number, -1) for number in given.tolist()])
            wanted = places >= 0
            self._ring.put_rows(torch.from_numpy(slots[places[wanted]]), rows[torch.from_numpy(wanted)])
            there[places[wanted]] = True
        return there

    def settle(self, position: str) -> None:
        """What lies up to this position was learned from meanwhile: it is fresh no longer."""
        with self._lock:
            for slot in np.flatnonzero(self._filled).tolist():
                if is_behind(self._position[slot], position):
                    self.sampler.remove(slot)
                    self.sampler.insert(slot, seen=True)
                    self._count[slot] = max(1, self._count[slot])

    def _kept(self) -> np.ndarray:
        """[n] slots of the sessions that may still be learned from, oldest first."""
        slots = np.flatnonzero(self._filled)
        slots = slots[self.sampler.may_come(slots)]
        return slots[np.argsort(self._numbers(slots))]

    @property
    def filling(self) -> tuple[int, int] | None:
        """(sessions kept, sessions wanted) before learning begins; None from then on."""
        kept, wanted = int(self._filled.sum()), max(self.flow.min_sessions, self.flow.batch)
        return None if self._began or kept >= wanted else (kept, wanted)

    def _waits_for(self) -> str:
        flow = self.flow
        if (filling := self.filling) is not None:
            return f"{filling[0]} of {filling[1]} sessions"
        missing = self.sampler.missing(flow.batch)
        if missing:
            return counted(missing, "more new session")
        if flow.reuse is None or self.sampler.reuse is not None:
            return ""
        debt = flow.reuse * self.received - self._delivered
        if debt < flow.batch:
            return f"{counted(np.ceil((flow.batch - debt) / flow.reuse), 'more session')} (reuse {flow.reuse:g} is reached)"
        return ""

    def _write(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        if self._filled[slot]:
            self.sampler.remove(slot)
            self.dropped["unused"] += int(self._count[slot] == 0)
        self._ring.write(slot, arrays)
        self._filled[slot], self._count[slot] = True, 0

    def _note_newest(self, slots: np.ndarray) -> None:
        self.newest_delivered = furthest(self.newest_delivered, *(self._position[slot] for slot in slots))

    def forget_positions(self) -> None:
        """Positions of an earlier incarnation of the run mean nothing in a new one."""
        with self._lock:
            self._position = [BEGINNING] * self.flow.buffer_size
            self.newest_delivered = BEGINNING

    def set_priorities(self, slots: torch.Tensor, priorities: torch.Tensor) -> None:
        """Passes new priorities [B] of a batch's `slots` on to the sampler, but for sessions overwritten since."""
        with self._lock:
            kept = slots >= self._written - self.flow.buffer_size
            priorities = torch.where(kept, priorities.to(slots.device), torch.nan)
            self.sampler.set_priorities(slots % self.flow.buffer_size, priorities)

    def discard(self, slots: torch.Tensor) -> None:
        """Takes a batch's sessions [B] out of memory, but for those overwritten since: learning from them went wrong."""
        with self._lock:
            for number in set(slots.tolist()):
                slot = number % self.flow.buffer_size
                if number >= self._written - self.flow.buffer_size and self._filled[slot]:
                    self._filled[slot] = False
                    self.sampler.remove(slot)
            self._limit_debt()

    def _expire(self, update: int) -> None:
        if self.flow.max_lag is None:
            return
        too_old = (self._update < update - self.flow.max_lag) & ~self._human  # what a person did does not age
        for slot in np.flatnonzero(self._filled & too_old):
            self.dropped["expired"] += 1
            self._filled[slot] = False
            self.sampler.remove(int(slot))
        self._limit_debt()

    def _limit_debt(self) -> None:
        """Forgives what sessions that left memory owed and the others cannot carry: players must not wait for that."""
        if self.flow.reuse is not None:
            kept = int(self._filled.sum())
            carried = max(self.flow.reuse * kept, self.flow.batch) if kept else 0.0
            self._delivered = max(self._delivered, self.flow.reuse * self.received - carried)

    def _numbers(self, slots: np.ndarray) -> np.ndarray:
        """How many sessions were written before those in these slots: tells them from others that come to lie there."""
        newest = self._written - 1
        return newest - (newest - slots) % self.flow.buffer_size

    def _cut(self, slots: np.ndarray, starts: np.ndarray, rows: int, burn_in: int, update: int) -> Batch:
        index = torch.from_numpy(slots).to(self.device, non_blocking=True)
        if rows == self.spec.length:
            leaves = {
                name: leaf if _is_memory(name) else leaf.transpose(0, 1)
                for name, leaf in self._ring.take(index).items()
            }
        else:
            leaves = self._slices(index, torch.from_numpy(starts).to(self.device, non_blocking=True), rows)
        trees = {name: nest.unflatten(leaves, name) for name in FIELDS}
        return Batch(
            **{**trees, "extras": trees["extras"] or {}},
            weights=self.sampler.weights(slots).to(self.device),
            lag=torch.from_numpy(update - self._update[slots]).to(self.device),
            slots=torch.from_numpy(self._numbers(slots)).to(self.device, non_blocking=True),
            burn_in=burn_in,
            human=torch.from_numpy(self._human[slots]).to(self.device, non_blocking=True),
        )

    def _slices(self, index: torch.Tensor, start: torch.Tensor, rows: int) -> dict[str, torch.Tensor]:
        """`rows` rows from `start` [B] on; memory is empty where that is not the session's beginning."""
        leaves = {}
        with self._ring.reading() as fields:
            for name, tensor in fields.items():
                if _is_memory(name):
                    memory = tensor[index]
                    begins_late = start.reshape(-1, *[1] * (memory.ndim - 1)) > 0
                    leaves[name] = torch.where(begins_late, torch.zeros_like(memory), memory)
                else:
                    count = rows + (tensor.shape[1] - self.spec.length)  # observations have a row more
                    leaves[name] = tensor[index, start + torch.arange(count, device=self.device)[:, None]]
        return leaves


def _is_memory(name: str) -> bool:
    return rows_beyond(name) is None
