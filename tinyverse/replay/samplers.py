"""Samplers: which of the stored sessions are learned from next. They pick slots of the replay.

Fresh        each session once, in order        on-policy, IMPALA
Uniform      any session, again and again       replay
Mixed        part fresh, the rest uniform       IMPALA with replay, or with what people played
Prioritized  what surprised most, most often    DQN, Ape-X, R2D2
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tinyverse.core.errors import SettingsError
from tinyverse.replay.sum_tree import SumTree

LEAST_PRIORITY = 1e-6  # is added to all, so that what was learned by heart is looked at again now and then


class Sampler:
    """Keeps book of the filled slots; the replay tells it what comes and goes, under its lock."""

    reuse: float | None = None  # deliveries per session that follow from the sampler itself; None: free to choose

    def prepare(self, size: int, device: torch.device) -> None:
        """A replay of so many slots on this device begins to use the sampler."""

    def insert(self, slot: int, seen: bool = False, human: bool = False) -> None:
        """A session was written into `slot`.

        Args:
            seen: it was sampled before a restart and is no longer fresh.
            human: a person played it.
        """
        raise NotImplementedError

    def remove(self, slot: int) -> None:
        """The session in `slot` is gone."""
        raise NotImplementedError

    def keeps(self, slot: int) -> bool:
        """Whether the session in `slot` is to outlive younger ones; never true of all slots."""
        return False

    def missing(self, batch: int) -> int:
        """How many sessions are missing before a batch can be drawn; 0 when it can."""
        raise NotImplementedError

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        """[batch] slots; only called when nothing is missing."""
        raise NotImplementedError

    def weights(self, slots: np.ndarray) -> torch.Tensor:
        """[B] float32 importance weights of the slots just drawn: 1 where all are drawn alike."""
        return torch.ones(len(slots))

    def set_priorities(self, slots: torch.Tensor, priorities: torch.Tensor) -> None:
        """New priorities [B] of slots [B] that were drawn, NaN for those that keep theirs. Not all samplers have any."""

    def pending(self) -> int:
        """Sessions that wait to be sampled for the first time."""
        return 0

    def may_come(self, slots: np.ndarray) -> np.ndarray:
        """[n] bool: which sessions of filled slots [n] may still be drawn; no others need to be kept over a restart."""
        return np.ones(len(slots), bool)

    def state_dict(self) -> dict[str, Any] | None:
        """What it knows of the stored sessions, by slot; None: nothing that `insert` would not tell it again."""
        return None

    def load_state_dict(self, state: Mapping[str, Any], moved: Mapping[int, int]) -> None:
        """Takes what `state_dict` gave, for the sessions of slots that are in `moved`: old slot -> slot now."""


class Fresh(Sampler):
    """Each session once, oldest first."""

    reuse = 1.0

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, None] = OrderedDict()  # slots

    def insert(self, slot: int, seen: bool = False, human: bool = False) -> None:
        if not seen:
            self._waiting[slot] = None

    def remove(self, slot: int) -> None:
        self._waiting.pop(slot, None)

    def missing(self, batch: int) -> int:
        return max(0, batch - len(self._waiting))

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        return np.array([self._waiting.popitem(last=False)[0] for _ in range(batch)])

    def pending(self) -> int:
        return len(self._waiting)

    def may_come(self, slots: np.ndarray) -> np.ndarray:
        return np.isin(slots, list(self._waiting))

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": list(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any], moved: Mapping[int, int]) -> None:
        self._waiting = OrderedDict.fromkeys(moved[slot] for slot in state["waiting"] if slot in moved)


class Uniform(Sampler):
    """Any stored session with equal probability; a batch repeats one only if it must."""

    def __init__(self) -> None:
        self.slots: dict[int, None] = {}  # those to draw from

    def insert(self, slot: int, seen: bool = False, human: bool = False) -> None:
        self.slots[slot] = None

    def remove(self, slot: int) -> None:
        self.slots.pop(slot, None)

    def missing(self, batch: int) -> int:
        return 0 if self.slots else 1

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        count = len(self.slots)
        return np.fromiter(self.slots, np.int64, count)[random.choice(count, batch, replace=batch > count)]

    def state_dict(self) -> dict[str, Any]:
        return {"slots": list(self.slots)}  # their order decides what a random number means

    def load_state_dict(self, state: Mapping[str, Any], moved: Mapping[int, int]) -> None:
        self.slots = dict.fromkeys(moved[slot] for slot in state["slots"] if slot in moved)


class Mixed(Sampler):
    """A share of `fresh` sessions, each once and in order, a share that people played, the rest drawn uniformly of all.

    Where `human` is a share, as large a part of the memory is theirs: people are slow, and what they showed would be
    written over within seconds. Their sessions are then never fresh, so that they do not take the players' place, and
    while there are none, the uniform part is larger by theirs.
    """

    def __init__(self, fresh: float = 0.5, human: float = 0.0) -> None:
        if not (0 < fresh < 1 and 0 <= human < 1 and fresh + human <= 1):
            raise SettingsError(
                f"Mixed(fresh={fresh}, human={human}) makes no sense; give shares between 0 and 1 that leave some to the "
                "others, such as 0.5 and 0.25."
            )
        self.fresh, self.human = fresh, human
        self.reuse = 1 / fresh
        self._reserved = 0  # slots
        self._parts = Fresh(), Uniform(), Uniform()  # the players' new ones, all that are stored, and the people's

    def prepare(self, size: int, device: torch.device) -> None:
        self._reserved = int(self.human * size)

    def insert(self, slot: int, seen: bool = False, human: bool = False) -> None:
        fresh, stored, people = self._parts
        stored.insert(slot)
        if human and self.human:
            people.insert(slot)
        else:
            fresh.insert(slot, seen)

    def remove(self, slot: int) -> None:
        for part in self._parts:
            part.remove(slot)

    def keeps(self, slot: int) -> bool:
        people = self._parts[2].slots
        return slot in people and len(people) <= self._reserved

    def missing(self, batch: int) -> int:
        return self._parts[0].missing(self._fresh_of(batch))

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        new = self._fresh_of(batch)
        shown = min(round(batch * self.human), batch - new) if self._parts[2].slots else 0
        counts = new, batch - new - shown, shown
        drawn = (part.draw(count, random) for part, count in zip(self._parts, counts, strict=True) if count)
        return np.concatenate(list(drawn))

    def pending(self) -> int:
        return self._parts[0].pending()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any], moved: Mapping[int, int]) -> None:
        for part, own in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(own, moved)

    def _fresh_of(self, batch: int) -> int:
        return max(1, round(batch * self.fresh))


class Prioritized(Sampler):
    """Sessions in proportion to priority^α, the rest of the mathematics as Schaul et al. 2016 have it.

        P(i) = p_i^α / Σ_k p_k^α        w_i = (N P(i))^−β / max_j w_j        (eq. 1; section 3.4)

    p_i is what learning gave back as the session's priority, plus a little; before that, the largest that any
    session here has, so that each is learned from soon. A batch is drawn in as many equal strata as it has sessions. α
    and β are Ape-X's.
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4) -> None:
        if not (alpha >= 0 and 0 <= beta <= 1):
            raise SettingsError(
                f"Prioritized(alpha={alpha}, beta={beta}) makes no sense; alpha is 0 or more, beta between 0 and 1."
            )
        self.alpha, self.beta = alpha, beta

    def prepare(self, size: int, device: torch.device) -> None:
        self._tree, self._device = SumTree(size, device), device
        self._filled: set[int] = set()
        self._changed: dict[int, bool] = {}  # slot -> filled; all that came and went since the last draw

    def insert(self, slot: int, seen: bool = False, human: bool = False) -> None:
        self._filled.add(slot)
        self._changed[slot] = True

    def remove(self, slot: int) -> None:
        if slot in self._filled:
            self._filled.remove(slot)
            self._changed[slot] = False

    def missing(self, batch: int) -> int:
        return 0 if self._filled else 1

    def draw(self, batch: int, random: np.random.Generator) -> np.ndarray:
        if self._changed:
            filled = self._tensor(np.array(list(self._changed.values()), np.float64))
            slots = self._tensor(np.array(list(self._changed)))
            self._tree.set(slots, 0 * filled)  # what the sessions before these had does not count any more
            largest = torch.where(self._tree.total > 0, self._tree.largest, 1.0)  # p^α
            self._tree.set(slots, filled * largest)
            self._changed.clear()
        places = (np.arange(batch) + random.random(batch)) / batch
        return self._tree.draw(self._tensor(places)).cpu().numpy()  # CPU–GPU sync

    def weights(self, slots: np.ndarray) -> torch.Tensor:
        weights = (len(self._filled) * self._tree.get(self._tensor(slots)) / self._tree.total) ** -self.beta
        return (weights / weights.max()).float()

    def set_priorities(self, slots: torch.Tensor, priorities: torch.Tensor) -> None:
        slots, priorities = slots.to(self._device), priorities.to(self._device).double()
        before = self._tree.get(slots)
        sound = priorities.isfinite() & (priorities >= 0) & (before > 0)  # what was removed stays so
        powers = torch.where(sound, (priorities + LEAST_PRIORITY) ** self.alpha, before)
        self._tree.set(slots, powers)

    def state_dict(self) -> dict[str, Any]:
        slots = self._tensor(np.array(sorted(self._filled), np.int64))
        return {
            "slots": slots, "priorities": self._tree.get(slots),
            "new": [slot for slot, filled in self._changed.items() if filled],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any], moved: Mapping[int, int]) -> None:
        kept = [index for index, slot in enumerate(state["slots"].tolist()) if slot in moved]
        slots = [moved[state["slots"][index].item()] for index in kept]
        self._filled, self._changed = set(slots), {moved[slot]: True for slot in state["new"] if slot in moved}
        self._tree.set(self._tensor(np.array(slots, np.int64)), state["priorities"][kept].to(self._device))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


SAMPLERS = {"fresh": Fresh, "uniform": Uniform, "mixed": Mixed, "prioritized": Prioritized}


def sampler_of(name: str | Sampler) -> Sampler:
    """A sampler by name (`fresh`, `uniform`, `mixed`, `prioritized`), or the sampler itself."""
    if isinstance(name, Sampler):
        return name
    if name not in SAMPLERS:
        raise SettingsError(f"there is no sampler {name!r}; there are {', '.join(sorted(SAMPLERS))}.")
    return SAMPLERS[name]()
