"""Frames: the newest steps of a player's environment, as pictures and numbers, out of the sessions it has pushed.

The player is asked for nothing, so it costs it nothing; what is seen is as old as its last push. Values are those of
the newest weights, computed here, if the experiment can be built here. Probabilities are those the action was drawn
with, where the agent noted them.
"""

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
from tinyverse.monitoring.sessions import evaluate_states, frames_of, softmax, steps_of

logger = logging.getLogger(__name__)

STEPS = 200  # of an answer, at most, if a session has not more
READ_SESSIONS = 2000  # for one answer, whatever players and counters say
READ_BYTES = 16 << 20  # of sessions, for one answer
SIDE = 320  # pixels of a frame's longer side, at most
COLUMNS = 16  # frames in a row of the picture that holds them all


class Frames:
    """What the environments of the run's players show, and what the agent computes. Safe to call from several threads.

    Args:
        make_agent: makes the run's agent of what its workers agreed on (`Database.meta`); None: no values are drawn.
    """

    def __init__(self, database: Database, make_agent: Callable[[Mapping[str, str]], Any] | None = None) -> None:
        self._database, self._make_agent = database, make_agent
        self._lock = threading.Lock()
        self._agent: Any = None
        self._run_id, self._version = "", -1
        self._note = "" if make_agent else "no values, as asked"

    def newest(self, player: str, env: int = 0, after: str = "") -> dict[str, Any]:
        """The newest steps of environment `env` of `player`, of up to STEPS / T sessions in a row behind the session `after`.

        Returns:
            {"id": the last session, "" if there is none; "version": of the weights that played it; "steps": a row each,
            as `sessions.steps_of` has them, with "probabilities" or "q", a number per action, or None;
            "sheet": {"picture": a data URL, "columns", "width", "height"} of the T + 1 frames; "values_of": a version or None,
            "note": why there are no values}
        """
        with self._lock:
            found = self._sessions(player, env, after or BEGINNING)
            if not found:
                return {"id": "", "steps": []}
            session = joined([session for _, session in found])
            computed = self._computed(session)
            logits, q = session.extras.get("behaviour_logits", computed.get("logits")), computed.get("q")
            probabilities = None if logits is None or q is not None else softmax(logits)
            rows = steps_of(session, value=computed.get("value"))
            for t, row in enumerate(rows):
                row["probabilities"] = None if probabilities is None else probabilities[t].tolist()
                row["q"] = None if q is None else q[t].tolist()
            return {
                "id": found[-1][0], "version": int(session.metadata["version"]), "human": session.human, "steps": rows,
                "sheet": _sheet(session), "values_of": self._version if computed else None, "note": self._note,
            }  # fmt: skip

    def _sessions(self, player: str, env: int, after: str) -> list[tuple[str, Session]]:
        """The newest sessions of one environment that follow on one another, oldest first."""
        workers = self._database.workers()
        num_envs = next((worker.num_envs for worker in workers if worker.id == player), 0)
        meta, size = self._database.meta(), self._database.size()
        if not meta or env >= num_envs or not size["sessions"]:
            return []
        spec = SessionSpec.from_json(meta.get("spec", ""))
        wanted = max(1, STEPS // spec.length)
        pushed_at_once = sum(worker.num_envs for worker in workers if worker.role in ("play", "human"))
        limit = min(
            (wanted + 2) * pushed_at_once, READ_BYTES * size["sessions"] // max(1, size["bytes"]), READ_SESSIONS
        )
        found: list[tuple[str, Session]] = []
        for key, blob in reversed(self._database.newest(max(1, limit, min(num_envs, READ_SESSIONS)))):
            if is_behind(key, after) or len(found) == wanted:
                break
            try:
                session = spec.decode(blob)
            except (CodecError, SpecError):  # rejected by the trainer too, which counts it
                continue
            if session.metadata.get("player") != player or int(session.metadata["sequence"]) % num_envs != env:
                continue
            if found and not _follows(session, found[-1][1]):
                break
            found.append((key, session))
        return found[::-1]

    def _computed(self, session: Session) -> dict[str, np.ndarray]:
        """What the agent with the newest weights computes; {} where there is none, and `_note` says why."""
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
        except Exception as error:  # whatever the experiment lacks here, the frames are still seen
            logger.warning("no values are drawn: %s", error)
            self._note = f"no values: {error}"
            return {}


def joined(sessions: Sequence[Session]) -> Session:
    """One session of the steps of several that follow on one another."""

    def rows(name: str) -> np.ndarray:
        parts, beyond = [session.arrays[name] for session in sessions], rows_beyond(name)
        if beyond is None:
            return parts[0]
        # a row beyond T is the first of the next session
        return np.concatenate([part[: len(part) - beyond] for part in parts[:-1]] + parts[-1:])

    return Session({name: rows(name) for name in sessions[0].arrays}, sessions[-1].metadata)


def _follows(earlier: Session, later: Session) -> bool:
    """Whether `later` begins with what `earlier` ends with; a real-time player drops sessions."""
    pairs = zip(nest.leaves(earlier.observations), nest.leaves(later.observations), strict=True)
    return all(np.array_equal(before[-1], after[0]) for before, after in pairs)


def _sheet(session: Session) -> dict[str, Any]:
    """All frames in one PNG, COLUMNS to a row, made smaller where a side is longer than SIDE."""
    frames = frames_of(session)
    factor = min(1.0, SIDE / max(frames[0].shape[:2]))
    height, width = (max(1, round(factor * side)) for side in frames[0].shape[:2])
    whole = np.zeros((-(-len(frames) // COLUMNS), height, COLUMNS, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        whole[number // COLUMNS, :, number % COLUMNS] = small if small.ndim == 3 else small[:, :, None]
    whole = whole.reshape(-1, COLUMNS * width, 3)
    png = cv2.imencode(".png", whole[:, :, ::-1])[1].tobytes()
    picture = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"picture": picture, "columns": COLUMNS, "width": width, "height": height}
