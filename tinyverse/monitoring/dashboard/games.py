"""Games: the newest steps of a player's game, as pictures and numbers, out of the sessions it has pushed.

The player is asked for nothing, so it costs it nothing; what is seen is as old as its last push. Values are those of
the newest weights, computed here, if the experiment can be built here; probabilities are those the action was drawn
with, where the agent noted them.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from tinyverse.core import nest, system
from tinyverse.core.errors import CodecError, DatabaseLost, SpecError
from tinyverse.core.session import Session, SessionSpec, rows_beyond
from tinyverse.core.weights import decode_weights
from tinyverse.database.base import BEGINNING, Database, is_behind
from tinyverse.monitoring.sessions import evaluate_states, frames_of, steps_of

logger = logging.getLogger(__name__)

STEPS = 200  # in a strip, at most, if a session has not more
READ_BYTES = 16 << 20  # of sessions, at a look
SIDE = 320  # pixels of a frame's longer side, at most
SHEET = 16  # frames in a row of the picture that holds them all


class Games:
    """The games of the run's players, and what the agent computes for them. Safe to call from several threads.

    Args:
        make_agent: makes the run's agent of what its workers agreed on (`Database.meta`); None: no values are drawn.
    """

    def __init__(self, database: Database, make_agent: Callable[[Mapping[str, str]], Any] | None = None) -> None:
        self._database, self._make_agent = database, make_agent
        self._lock = threading.Lock()
        self._agent: Any = None
        self._run_id, self._version = "", -1
        self._note = "" if make_agent else "no values, as asked"

    def strip(self, player: str, seat: int = 0, after: str = "") -> dict[str, Any]:
        """The newest steps of game `seat` of `player` that came after the session `after`: sessions that follow on
        one another, as many as make STEPS.

        Returns:
            {"id": the last session, "" if there is none; "version": of the weights that played it; "steps": a row each,
            as `sessions.steps_of` has them, with "probabilities" or "q", a number per action, or None;
            "sheet": {"picture": a data URL, "columns", "width", "height"} of the T + 1 frames; "values_of": a version or None,
            "note": why there are no values}
        """
        with self._lock:
            found = self._newest(player, seat, after or BEGINNING)
            if not found:
                return {"id": "", "steps": []}
            session = joined([session for _, session in found])
            said = self._judged(session)
            value = said.get("value", session.extras.get("behaviour_value"))
            logits = session.extras.get("behaviour_logits", said.get("logits"))
            rows = steps_of(session, value=value)
            for t, row in enumerate(rows):
                row["probabilities"] = None if logits is None or "q" in said else _softmax(logits[t]).tolist()
                row["q"] = said["q"][t].tolist() if "q" in said else None
            return {
                "id": found[-1][0], "version": int(session.metadata["version"]), "human": session.human, "steps": rows,
                "sheet": _sheet(session), "values_of": self._version if said else None, "note": self._note,
            }  # fmt: skip

    def _newest(self, player: str, seat: int, after: str) -> list[tuple[str, Session]]:
        """The newest sessions of one game that follow on one another, oldest first."""
        workers = self._database.workers()
        num_envs = next((worker.num_envs for worker in workers if worker.id == player), 0)
        meta, size = self._database.meta(), self._database.size()
        if not meta or seat >= num_envs or not size["sessions"]:
            return []
        spec = SessionSpec.from_json(meta["spec"])
        wanted = max(1, STEPS // spec.length)
        pushed_at_once = sum(worker.num_envs for worker in workers if worker.role in ("play", "human"))
        limit = min((wanted + 2) * pushed_at_once, READ_BYTES * size["sessions"] // max(1, size["bytes"]))
        found: list[tuple[str, Session]] = []
        for key, blob in reversed(self._database.newest(max(limit, num_envs))):
            if is_behind(key, after) or len(found) == wanted:
                break
            try:
                session = spec.decode(blob)
            except (CodecError, SpecError):  # rejected by the trainer too, which counts it
                continue
            if session.metadata.get("player") != player or int(session.metadata["sequence"]) % num_envs != seat:
                continue
            if found and not _follows(session, found[-1][1]):
                break
            found.append((key, session))
        return found[::-1]

    def _judged(self, session: Session) -> dict[str, np.ndarray]:
        """What the agent with the newest weights thinks; {} where there is none, and `_note` says why."""
        if self._note or self._make_agent is None:
            return {}
        try:
            if self._agent is None or self._run_id != self._database.state().run_id:  # a new run counts versions anew
                system.set_threads(1)
                self._run_id, self._version = self._database.state().run_id, -1
                self._agent = self._make_agent(self._database.meta())
            newer = self._database.get_weights(newer_than=self._version)
            if newer is not None:
                self._agent.set_weights(decode_weights(newer[1])[0])
                self._version = newer[0]
            return evaluate_states(self._agent, session) if self._version >= 0 else {}
        except DatabaseLost:  # it may come back
            raise
        except Exception as error:  # whatever the experiment lacks here, the game is still seen
            logger.warning("no values are drawn: %s", error)
            self._note = f"no values: {error}"
            return {}


def joined(sessions: Sequence[Session]) -> Session:
    """One session of the steps of several that follow on one another."""

    def rows(name: str) -> np.ndarray:
        parts, beyond = [session.arrays[name] for session in sessions], rows_beyond(name)
        if beyond is None:
            return parts[0]
        if beyond:  # the last row is the first of the next
            parts[:-1] = [part[:-beyond] for part in parts[:-1]]
        return np.concatenate(parts)

    return Session({name: rows(name) for name in sessions[0].arrays}, sessions[-1].metadata)


def _follows(earlier: Session, later: Session) -> bool:
    """Whether `later` begins with what `earlier` ends with; a real-time player drops sessions."""
    pairs = zip(nest.leaves(earlier.observations), nest.leaves(later.observations), strict=True)
    return all(np.array_equal(before[-1], after[0]) for before, after in pairs)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def _sheet(session: Session) -> dict[str, Any]:
    """All frames in one PNG, SHEET to a row."""
    frames = [_small(frame) for frame in frames_of(session)]
    height, width = frames[0].shape[:2]
    whole = np.zeros((-(-len(frames) // SHEET) * height, SHEET * width, 3), np.uint8)
    for number, frame in enumerate(frames):
        top, left = number // SHEET * height, number % SHEET * width
        whole[top : top + height, left : left + width] = np.broadcast_to(np.atleast_3d(frame), (height, width, 3))
    png = cv2.imencode(".png", whole[:, :, ::-1])[1].tobytes()
    picture = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"picture": picture, "columns": SHEET, "width": width, "height": height}


def _small(frame: np.ndarray) -> np.ndarray:
    factor = SIDE / max(frame.shape[:2])
    if factor >= 1:
        return frame
    size = max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
