"""Stored sessions as tables, pictures and files: what the command `sessions` and the dashboard show.

Imports torch only to ask an agent. Reads the database; only `push` writes to it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyverse.core import nest
from tinyverse.core.errors import CodecError, DatabaseError, SettingsError, SpecError
from tinyverse.core.run_config import experiment_and_settings
from tinyverse.core.session import Session, SessionSpec
from tinyverse.database.base import BEGINNING, Database, State, is_behind, is_session_id, just_before
from tinyverse.envs.video import picture

if TYPE_CHECKING:
    from tinyverse.agents.torch_agent import TorchAgent

Entry = tuple[str, bytes]  # a stored session: its id, and what was pushed
AT_ONCE = 64  # sessions in one read or push
PUSH_BYTES = 16 << 20  # of arrays in one push, and one session more
CELL = 24  # pixels of a number in the picture of an observation without images


def spec_of(database: Database, run: str) -> tuple[dict[str, str], SessionSpec]:
    """What the run's workers agreed on, and the spec of its sessions. Raises DatabaseError where there is no such run."""
    meta = database.meta()
    if not meta:
        raise DatabaseError(f"there is no run {run} on this server. `tinyverse info` names those there are.")
    experiment_and_settings(meta)
    return meta, SessionSpec.from_json(meta.get("spec", ""))


def every(database: Database) -> Iterator[Entry]:
    """Every stored session, oldest first."""
    after = BEGINNING
    while entries := database.read(after, AT_ONCE)[0]:
        yield from entries
        after = entries[-1][0]


def decoded(
    entries: Iterable[Entry], spec: SessionSpec, *, on_damaged: Callable[[str, Exception], object], human: bool = False
) -> Iterator[tuple[str, Session]]:
    """(id, session) of the entries that can be read; with `human`, only of those that people played.

    Args:
        on_damaged: called with the id of an entry that cannot be read, and the reason.
    """
    for key, blob in entries:
        try:
            session = spec.decode(blob)
        except (CodecError, SpecError) as error:
            on_damaged(key, error)
            continue
        if not human or session.human:
            yield key, session


def find(database: Database, spec: SessionSpec, run: str, key: str | None) -> tuple[str, Session]:
    """The session with this id, or the newest. Raises SettingsError where there is no such id or session."""
    if key is None:
        entries = database.newest(1)
    elif is_session_id(key):
        entries = [(key, blob) for found, blob in database.read(just_before(key), 1)[0] if is_behind(found, key)]
    else:
        raise SettingsError(
            f"{key!r} is no session's id; they look like 1700000000000-0, as `sessions ls` prints them."
        )
    if not entries:
        raise SettingsError(
            f"run {run} has no session {key or 'yet'}; `sessions ls` names the newest. Old ones make room."
        )
    return entries[0][0], spec.decode(entries[0][1])


def push(
    database: Database, spec: SessionSpec, sessions: Iterator[Session], should_stop: Callable[[], bool]
) -> Iterator[int]:
    """Pushes sessions under the names of their players, and waits for the trainer as players do.

    Yields how many it has pushed, each time.
    """
    at_once = min(AT_ONCE, 1 + PUSH_BYTES // spec.nbytes)
    while part := [session.encode() for session in itertools.islice(sessions, at_once)]:
        while not database.state().may_play and any(worker.role == "train" for worker in database.workers()):
            if should_stop():
                return
            time.sleep(0.1)
        database.append(part)
        yield len(part)


def summary(key: str, session: Session, state: State) -> dict[str, Any]:
    """A session in a few plain values."""
    metadata = session.metadata
    return {
        "id": key, "player": metadata.get("player", ""), "human": session.human, "sequence": int(metadata["sequence"]),
        "version": int(metadata["version"]), "lag": max(0, state.update - int(metadata["update"])),
        "steps": int(session.valid.sum()), "reward": float(session.rewards[session.valid].sum()),
        "episodes": [total for total, _ in session.episodes],
    }  # fmt: skip


def steps_of(
    session: Session, value: np.ndarray | None = None, entropy: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """A row per step with plain values; None where neither `value` and `entropy` [T] nor the player's notes know."""
    extras, rows = session.extras, []
    if entropy is None and "behaviour_logits" in extras:
        chances = softmax(extras["behaviour_logits"])
        entropy = -(chances * np.log(np.maximum(chances, np.finfo(np.float32).tiny))).sum(-1)
    known = {
        "value": extras.get("behaviour_value") if value is None else value,
        "entropy": entropy,
        "log_prob": extras.get("behaviour_log_prob"),
    }
    for t in range(len(session.rewards)):
        ends = {name: bool(getattr(session, name)[t]) for name in ("terminated", "truncated", "valid")}
        numbers = {name: None if array is None or array.ndim != 1 else float(array[t]) for name, array in known.items()}
        end = next((name for name in ("terminated", "truncated") if ends[name]), "") if ends["valid"] else "reset"
        action = nest.map(lambda leaf, t=t: leaf[t].tolist(), session.actions)
        rows.append({"step": t, "action": action, "reward": float(session.rewards[t]), **numbers, **ends, "end": end})
    return rows


def softmax(logits: np.ndarray) -> np.ndarray:
    """[…, A] probabilities of logits."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def frames_of(session: Session) -> list[np.ndarray]:
    """[H, W] or [H, W, 3] uint8 of each observation: the image in it, or else its numbers as grey cells.

    A number is black at its least and white at its most within the session.
    """
    observations = session.observations
    steps = (nest.map(lambda leaf, t=t: leaf[t : t + 1], observations) for t in range(len(session.rewards) + 1))
    images = [image for step in steps if (image := picture(step)) is not None]
    if images:
        return images
    numbers = [leaf.reshape(len(leaf), -1).astype(np.float64) for leaf in nest.leaves(observations)]
    table = np.nan_to_num(np.concatenate(numbers, axis=1), posinf=0.0, neginf=0.0)
    least, most = table.min(0), table.max(0)
    grey = (255 * (table - least) / np.where(most > least, most - least, 1)).astype(np.uint8)
    side = int(np.ceil(np.sqrt(grey.shape[1])))
    grey = np.pad(grey, ((0, 0), (0, side * -(-grey.shape[1] // side) - grey.shape[1])))
    return [row.reshape(-1, side).repeat(CELL, 0).repeat(CELL, 1) for row in grey]


def evaluate_states(agent: TorchAgent, session: Session) -> dict[str, np.ndarray]:
    """What the agent computes for the session's observations.

    Returns:
        {"value", "entropy"}: [T] each; "logits" [T, A] where one Discrete action is chosen; "q" [T, A] of a QAgent.
    """
    import torch

    from tinyverse.agents.q_agent import QAgent
    from tinyverse.networks import Categorical

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    rows = nest.map(lambda leaf: tensor(leaf)[:, None], session.observations)
    state = nest.map(lambda leaf: tensor(leaf)[None], session.initial_state)
    is_first = torch.cat([torch.zeros(1, dtype=torch.bool), ~tensor(session.valid)])[:, None]
    with torch.inference_mode():
        outputs, _ = agent.network(rows, state, is_first)
        policy = agent.network.distribution(outputs.policy)
        computed = {"value": outputs.values, "entropy": policy.entropy()}
        if isinstance(policy, Categorical):
            computed["logits"] = policy.logits
        if isinstance(agent, QAgent):
            computed["q"] = agent.q_values(outputs)
    return {name: rows[:-1, 0].float().numpy() for name, rows in computed.items()}
