"""Samplers: which of the stored sessions are learned from next. They pick slots of the replay and know no tensors.

Fresh      each session once, in order        on-policy, IMPALA
Uniform    any session, again and again       replay
Mixed      part fresh, the rest uniform       IMPALA with replay
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import torch

from tinyverse.errors import SettingsError


class Sampler:
    """Keeps book of the filled slots; the replay tells it what comes and goes, under its lock."""

    reuse: float | None = None  # deliveries per session that follow from the sampler itself; None: free to choose

    def insert(self, slot: int, seen: bool = False) -> None:
        """A session was written into `slot`; `seen` if it was delivered before a restart and is no longer fresh."""
        raise NotImplementedError

    def remove(self, slot: int) -> None:
        """The session in `slot` is gone."""
        raise NotImplementedError

    def missing(self, batch: int) -> int:
        """How many sessions are missing before a batch can be drawn; 0 when it can."""
        raise NotImplementedError

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        """[batch] slots; only called when nothing is missing."""
        raise NotImplementedError

    def set_priorities(self, slots: torch.Tensor, priorities: torch.Tensor) -> None:
        """New priorities of slots that were drawn; ignored by samplers that have none."""

    def pending(self) -> int:
        """Sessions that wait to be delivered for the first time."""
        return 0


class Fresh(Sampler):
    """Each session once, oldest first."""

    reuse = 1.0

    def __init__(self) -> None:
        self._queue: deque[int] = deque()

    def insert(self, slot: int, seen: bool = False) -> None:
        if not seen:
            self._queue.append(slot)

    def remove(self, slot: int) -> None:
        if self._queue and self._queue[0] == slot:  # the replay is a ring: what goes is nearly always the oldest
            self._queue.popleft()
        elif slot in self._queue:
            self._queue.remove(slot)

    def missing(self, batch: int) -> int:
        return max(0, batch - len(self._queue))

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        return np.array([self._queue.popleft() for _ in range(batch)])

    def pending(self) -> int:
        return len(self._queue)


class Uniform(Sampler):
    """Any stored session with equal probability; a batch repeats one only if it must."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._where: dict[int, int] = {}

    def insert(self, slot: int, seen: bool = False) -> None:
        self._where[slot] = len(self._slots)
        self._slots.append(slot)

    def remove(self, slot: int) -> None:
        place = self._where.pop(slot, None)
        if place is None:
            return
        last = self._slots.pop()
        if last != slot:
            self._slots[place], self._where[last] = last, place

    def missing(self, batch: int) -> int:
        return 0 if self._slots else 1

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        places = random.choice(len(self._slots), batch, replace=batch > len(self._slots))
        return np.array(self._slots)[places]


class Mixed(Sampler):
    """A share of `fresh` sessions, each once and in order, the rest drawn uniformly from all that are stored."""

    def __init__(self, fresh: float = 0.5) -> None:
        if not 0 < fresh < 1:
            raise SettingsError(f"Mixed(fresh={fresh}) makes no sense; give a share between 0 and 1, such as 0.5.")
        self.fresh = fresh
        self.reuse = 1 / fresh
        self._parts: tuple[Sampler, Sampler] = (Fresh(), Uniform())

    def insert(self, slot: int, seen: bool = False) -> None:
        for part in self._parts:
            part.insert(slot, seen)

    def remove(self, slot: int) -> None:
        for part in self._parts:
            part.remove(slot)

    def missing(self, batch: int) -> int:
        return self._parts[0].missing(self._fresh_of(batch))

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        new = self._fresh_of(batch)
        return np.concatenate([self._parts[0].draw(new, random), self._parts[1].draw(batch - new, random)])

    def pending(self) -> int:
        return self._parts[0].pending()

    def _fresh_of(self, batch: int) -> int:
        return max(1, round(batch * self.fresh))


SAMPLERS = {"fresh": Fresh, "uniform": Uniform, "mixed": Mixed}


def sampler_of(name: str | Sampler) -> Sampler:
    """A sampler by name (`fresh`, `uniform`, `mixed`), or the sampler itself."""
    if isinstance(name, Sampler):
        return name
    if name not in SAMPLERS:
        raise SettingsError(f"there is no sampler {name!r}; there are {_names(SAMPLERS)}.")
    return SAMPLERS[name]()


def _names(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
