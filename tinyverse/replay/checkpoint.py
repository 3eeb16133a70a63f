"""Checkpoint of a replay: its books, and the sessions that go with them, from one replay into another.

state = state_of(replay)                 under the replay's lock, quick
sessions = sessions_of(replay, state)    read piece by piece later, for `StoredSessions.write`
restore(empty, state, rows)              rows as `StoredSessions.read` gives them
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from tinyverse.core.errors import SpecError
from tinyverse.core.session import SessionSpec
from tinyverse.replay.buffer import Replay
from tinyverse.replay.files import Sessions

Rows = tuple[torch.Tensor, torch.Tensor]  # numbers [m] of sessions, their bytes [m, width]


def kept_slots(replay: Replay) -> np.ndarray:
    """[n] slots of the sessions that may still be drawn, oldest first."""
    slots = np.flatnonzero(replay.slots.filled)
    slots = slots[replay.sampler.may_come(slots)]
    return slots[np.argsort(replay.slots.numbers(slots))]


def state_of(replay: Replay) -> dict[str, Any]:
    """The books, copied, without the bytes of the sessions, which `sessions_of` reads."""
    with replay.lock:
        slots, about = kept_slots(replay), replay.slots
        return {
            "spec": replay.spec.to_json(), "size": len(about), "reuse": replay.config.reuse,
            "sampler": type(replay.sampler).__name__, "sampling": replay.sampler.state_dict(),
            "series": replay.series, "_written": about.written, "_began": replay.began,
            "numbers": about.numbers(slots), "updates": about.update[slots], "counts": about.count[slots],
            "human": about.human[slots], "positions": " ".join(about.session_id[slot] for slot in slots),
            "sources": [about.source[slot] for slot in slots],
            "newest_delivered": replay.newest_sampled, "dropped": dict(replay.dropped), **replay.limiter.state_dict(),
        }  # fmt: skip


def sessions_of(replay: Replay, state: Mapping[str, Any]) -> Sessions:
    """The sessions of a `state_of`, to be read piece by piece while others come. One overwritten before its turn is gone."""

    def read(numbers: torch.Tensor) -> Rows:
        with replay.lock:
            return replay.ring.rows(numbers % len(replay.slots)), numbers >= replay.slots.oldest_number

    return Sessions(replay.series, torch.from_numpy(state["numbers"]), replay.ring.bytes.shape[1], read)


def restore(replay: Replay, state: Mapping[str, Any], sessions: Iterable[Rows]) -> None:
    """Gives an empty replay what `state_of` and `sessions_of` gave. One of another size takes the newest sessions; with
    another sampler, sessions that were drawn are no longer fresh.

    Raises:
        SpecError: the sessions are not this run's.
    """
    if SessionSpec.from_json(state["spec"]) != replay.spec:
        raise SpecError("the stored sessions are of another shape than this experiment's.")
    about, size = replay.slots, len(replay.slots)
    numbers, same_size = np.asarray(state["numbers"])[-size:], state["size"] == size
    slots = numbers % size if same_size else np.arange(len(numbers))
    with replay.lock:
        there = _put(replay, numbers, slots, sessions)
        about.filled[slots] = there
        for kept, name in ((about.update, "updates"), (about.count, "counts"), (about.human, "human")):
            kept[slots] = np.asarray(state[name])[-size:]
        for slot, session_id in zip(slots, state["positions"].split()[-size:], strict=True):
            about.session_id[slot] = session_id
        for slot, source in zip(
            slots, state.get("sources", [])[-size:], strict=False
        ):  # the first checkpoints have none
            about.source[slot] = source
        about.written = state["_written"] if same_size else len(numbers)
        replay.series = state["series"] if same_size else replay.series
        replay.newest_sampled, replay.began = state["newest_delivered"], state["_began"]
        replay.dropped = dict(state["dropped"])
        replay.limiter.load_state_dict(state, state["reuse"])
        if state["sampling"] is not None and state["sampler"] == type(replay.sampler).__name__:
            before = (numbers % state["size"])[there].tolist()
            replay.sampler.load_state_dict(state["sampling"], dict(zip(before, slots[there].tolist(), strict=True)))
            return
        for slot in slots[there].tolist():
            replay.sampler.insert(slot, bool(about.count[slot]), bool(about.human[slot]))


def _put(replay: Replay, numbers: np.ndarray, slots: np.ndarray, sessions: Iterable[Rows]) -> np.ndarray:
    """Writes those of the sessions that have these numbers [n] into these slots [n]; [n] bool: which were given."""
    place, there = {number: index for index, number in enumerate(numbers.tolist())}, np.zeros(len(numbers), bool)
    for given, rows in sessions:
        places = np.array([place.get(number, -1) for number in given.tolist()])
        wanted = places >= 0
        replay.ring.put_rows(torch.from_numpy(slots[places[wanted]]), rows[torch.from_numpy(wanted)])
        there[places[wanted]] = True
    return there
