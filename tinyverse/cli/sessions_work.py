"""Looking: the verb `sessions`: stored sessions as a table, as a film, as files. Imports no experiment, unless asked for values.

`ls`, `show`, `video` and `export` never write to the database; `import` pushes what was exported, after a check of all.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from tinyverse.cli.context import RECORDS, Asked, positive
from tinyverse.core import nest, system
from tinyverse.core.errors import CodecError, DatabaseError, SettingsError, SpecError
from tinyverse.core.run_config import check_can_join, experiment_and_settings
from tinyverse.core.session import Session, SessionSpec
from tinyverse.core.signals import stop_on_signals
from tinyverse.core.text import counted
from tinyverse.core.weights import decode_weights
from tinyverse.database import archive
from tinyverse.database.base import Database, State
from tinyverse.database.cursor import BEGINNING, is_behind, is_position, just_before
from tinyverse.envs.video import VideoWriter, picture
from tinyverse.experiment import loader
from tinyverse.monitoring import metrics

if TYPE_CHECKING:
    from tinyverse.agents.torch_agent import TorchAgent

AT_ONCE = 64  # sessions in one read or push
PUSH_BYTES = 16 << 20  # in one push
CELL = 24  # pixels of a number in the film of a session without images


def do_list(asked: Asked, *, limit: int = 20, human: bool = False, as_json: bool = False) -> None:
    """Prints the newest sessions, a line each, oldest first."""
    positive(limit=limit)
    with _opened(asked) as (database, _, spec):
        state, rows = database.state(), []
        for key, blob in database.newest(limit):
            try:
                session = spec.decode(blob)
            except (CodecError, SpecError) as error:
                rows.append({"id": key, "bytes": len(blob), "error": str(error)})
                continue
            if not human or session.human:
                rows.append(_summary(key, session, state) | {"bytes": len(blob)})
        kept = database.size()["sessions"]
    if as_json:
        print(json.dumps(rows))
        return
    names = ("id", "player", "sequence", "version", "lag", "steps", "reward", "episodes", "bytes")
    Console().print(_table(names, [[row.get(name, "") for name in names] for row in rows]))
    for row in rows:
        if "error" in row:
            print(f"{row['id']} cannot be read: {row['error']}")
    print(f"{len(rows)} of {counted(kept, 'session')} of run {asked.run}")


def do_show(asked: Asked, key: str | None, *, values: bool = False, as_json: bool = False) -> None:
    """Prints a session step by step; `values` asks the experiment's agent with the newest weights for V and H."""
    with _opened(asked) as (database, meta, spec):
        key, session = _find(database, spec, asked.run, key)
        said = _judged(asked, database, meta, session) if values else {}
        facts = _summary(key, session, database.state())
    rows = steps_of(session, **said)
    if as_json:
        print(json.dumps({**facts, "metadata": session.metadata, "rows": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "")))
    names = ("step", "action", "reward", "value", "entropy", "log_prob", "end")
    Console().print(_table(names, [[row[name] for name in names] for row in rows]))


def do_film(asked: Asked, key: str | None, *, fps: float = 15.0) -> Path:
    """Films what the agent saw; returns the file."""
    if not 0 < fps <= 1000:
        raise SettingsError(f"--fps is {fps:g}; give 0 to 1000 frames a second.")
    with _opened(asked) as (database, _, spec):
        key, session = _find(database, spec, asked.run, key)
    with (
        VideoWriter(RECORDS / f"{asked.run}-{key}.webm", fps) as video,
        asked.bar("frames", len(session.rewards) + 1) as bar,
    ):
        for frame in bar.over(frames_of(session)):
            video.write(frame)
    return video.path


def do_export(asked: Asked, path: Path, *, limit: int | None = None, human: bool = False) -> archive.Archive:
    """Writes stored sessions to files, all or the newest `limit`; with `human`, only those that people played."""
    with _chosen(asked, limit, human) as (sessions, spec, about):
        return archive.write(path, sessions, spec, about)


def do_export_hdf5(asked: Asked, path: Path, *, limit: int | None = None, human: bool = False) -> int:
    """As `do_export`, into one file for other tools; returns how many. It cannot be imported again."""
    with _chosen(asked, limit, human) as (sessions, spec, about):
        return archive.write_hdf5(path, sessions, spec, about)


@contextlib.contextmanager
def _chosen(
    asked: Asked, limit: int | None, human: bool
) -> Iterator[tuple[Iterator[tuple[str, Session]], SessionSpec, dict[str, Any]]]:
    """((id, session) of those to be written, their spec, what they are of)."""
    positive(limit=limit)
    with _opened(asked) as (database, meta, spec):
        kept = database.size()["sessions"]
        bar = asked.bar("sessions", min(limit or kept, kept))

        def chosen() -> Iterator[tuple[str, Session]]:
            for key, blob in bar.over(_all(database) if limit is None else database.newest(limit)):
                try:
                    session = spec.decode(blob)
                except (CodecError, SpecError) as error:
                    asked.say(f"session {key} is left out: {error}")
                    continue
                if not human or session.human:
                    yield key, session

        with bar:
            yield chosen(), spec, {"run": asked.run, **experiment_and_settings(meta)}


def do_import(asked: Asked, path: Path) -> int:
    """Pushes exported sessions after a check of all of them; returns how many. Waits for the trainer, as players do."""
    found, pushed = archive.Archive.open(path), 0
    with _opened(asked) as (database, _, spec), stop_on_signals() as should_stop:
        with asked.bar("sessions checked", len(found)) as bar:
            archive.check(found, spec, asked.run, on_session=bar.count)
        if len(found) > (capacity := database.state().capacity):
            asked.say(f"the run keeps {counted(capacity, 'session')}; of these {len(found):,} the newest will be left")
        with asked.bar("sessions imported", len(found)) as bar:
            for part in _bounded(session for _, session in found):
                while not database.state().may_play and any(worker.role == "train" for worker in database.workers()):
                    if should_stop():
                        return pushed
                    time.sleep(0.1)
                database.append([session.encode() for session in part])
                pushed += len(part)
                bar.count(len(part))
    return pushed


def steps_of(
    session: Session, value: np.ndarray | None = None, entropy: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """A row per step with plain values; None where the session does not know.

    Args:
        value, entropy: [T] of somebody who was asked; else what the agent noted when it played.
    """
    extras, rows = session.extras, []
    value = extras.get("behaviour_value") if value is None else value
    if entropy is None and "behaviour_logits" in extras:
        entropy = _entropy(extras["behaviour_logits"])
    log_prob = extras.get("behaviour_log_prob")
    for t in range(len(session.rewards)):
        end = ("terminated" * bool(session.terminated[t])) or ("truncated" * bool(session.truncated[t]))
        rows.append({
            "step": t, "action": nest.map(lambda leaf, t=t: leaf[t].tolist(), session.actions), "reward": float(session.rewards[t]),
            "value": _at(value, t), "entropy": _at(entropy, t), "log_prob": _at(log_prob, t),
            "terminated": bool(session.terminated[t]), "truncated": bool(session.truncated[t]), "alive": bool(session.alive[t]),
            "end": end if session.alive[t] else "reset",
        })  # fmt: skip
    return rows


def frames_of(session: Session) -> Iterator[np.ndarray]:
    """[H, W] or [H, W, 3] uint8 of each observation: the image in it, or else its numbers as grey cells.

    A number is black at its least and white at its most within the session.
    """
    if picture(nest.map(lambda leaf: leaf[:1], session.observations)) is not None:
        for t in range(len(session.rewards) + 1):
            frame = picture(nest.map(lambda leaf, t=t: leaf[t : t + 1], session.observations))
            assert frame is not None
            yield frame
        return
    rows = [leaf.reshape(len(leaf), -1).astype(np.float64) for leaf in nest.leaves(session.observations)]
    table = np.nan_to_num(np.concatenate(rows, axis=1), posinf=0.0, neginf=0.0)
    least, most = table.min(0), table.max(0)
    grey = (255 * (table - least) / np.where(most > least, most - least, 1)).astype(np.uint8)
    side = int(np.ceil(np.sqrt(grey.shape[1])))
    grey = np.pad(grey, ((0, 0), (0, side * -(-grey.shape[1] // side) - grey.shape[1])))
    for row in grey:
        yield row.reshape(-1, side).repeat(CELL, 0).repeat(CELL, 1)


@contextlib.contextmanager
def _opened(asked: Asked) -> Iterator[tuple[Database, dict[str, str], SessionSpec]]:
    """The run's database, its agreement and the spec of its sessions."""
    with asked.connected(start=False) as database:
        meta = database.meta()
        if not meta:
            raise DatabaseError(f"there is no run {asked.run} on this server. `tinyverse info` names those there are.")
        experiment_and_settings(meta)
        yield database, meta, SessionSpec.from_json(meta["spec"])


def _find(database: Database, spec: SessionSpec, run: str, key: str | None) -> tuple[str, Session]:
    """The session of this id, or the newest."""
    if key is None:
        entries = database.newest(1)
    else:
        if not is_position(key):
            raise SettingsError(
                f"{key!r} is no session's id; they look like 1700000000000-0, as `sessions ls` prints them."
            )
        entries = [(key, blob) for found, blob in database.read(just_before(key), 1)[0] if is_behind(found, key)]
    if not entries:
        raise SettingsError(
            f"run {run} has no session {key or 'yet'}; `sessions ls` names the newest. Old ones make room."
        )
    return entries[0][0], spec.decode(entries[0][1])


def _all(database: Database) -> Iterator[tuple[str, bytes]]:
    """Every stored session, oldest first."""
    after = BEGINNING
    while entries := database.read(after, AT_ONCE)[0]:
        yield from entries
        after = entries[-1][0]


def _bounded(sessions: Iterator[Session]) -> Iterator[list[Session]]:
    part, size = list[Session](), 0
    for session in sessions:
        part.append(session)
        size += sum(array.nbytes for array in session.arrays.values())
        if len(part) == AT_ONCE or size >= PUSH_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _summary(key: str, session: Session, state: State) -> dict[str, Any]:
    """A session in a few plain values."""
    metadata = session.metadata
    return {
        "id": key, "player": metadata.get("player", ""), "human": session.human, "sequence": int(metadata["sequence"]),
        "version": int(metadata["version"]), "lag": max(0, state.update - int(metadata["update"])),
        "steps": int(session.alive.sum()), "reward": float(session.rewards[session.alive].sum()),
        "episodes": [total for total, _ in session.episodes],
    }  # fmt: skip


def agent_of(asked: Asked, meta: Mapping[str, str]) -> TorchAgent:
    """The experiment's agent, built here with the run's settings; its weights are not the run's.

    Raises:
        SettingsError: it is no TorchAgent, so nothing is known of what it thinks.
    """
    from tinyverse.agents.torch_agent import TorchAgent

    agreed = experiment_and_settings(meta)
    check_can_join(asked.run, agreed, asked.title, asked.given)
    agent = loader.build(asked.module, asked.resolved(agreed["settings"])).agent()
    if not isinstance(agent, TorchAgent):
        raise SettingsError(f"{type(agent).__name__} is no TorchAgent and has none.")
    return agent


def judge(agent: TorchAgent, session: Session) -> dict[str, np.ndarray]:
    """What the agent thinks of the session's states.

    Returns:
        {"value", "entropy"}: [T] each; "logits" [T, A] where one Discrete action is chosen; "q" [T, A] of a QAgent.
    """
    import torch

    from tinyverse.agents.q_agent import QAgent
    from tinyverse.networks import Categorical

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    rows = nest.map(lambda leaf: tensor(leaf)[:, None], session.observations)
    memory = nest.map(lambda leaf: tensor(leaf)[None], session.initial_memory)
    first = torch.cat([torch.zeros(1, dtype=torch.bool), ~tensor(session.alive)])[:, None]
    with torch.inference_mode():
        outputs, _ = agent.network(rows, memory, first)
        policy = agent.network.distribution(outputs.policy)
        said = {"value": outputs.values, "entropy": policy.entropy()}
        if isinstance(policy, Categorical):
            said["logits"] = policy.logits
        if isinstance(agent, QAgent):
            said["q"] = agent.q_values(outputs)
    return {name: rows[:-1, 0].float().numpy() for name, rows in said.items()}


def _judged(asked: Asked, database: Database, meta: Mapping[str, str], session: Session) -> dict[str, np.ndarray]:
    """{"value", "entropy"}: [T] each, of the newest weights."""
    system.set_threads(1)
    try:
        agent = agent_of(asked, meta)
    except SettingsError as error:
        raise SettingsError(f"--values: {error}") from None
    found = database.get_weights()
    if found is None:
        raise SettingsError("--values: the run has no weights yet.")
    agent.set_weights(decode_weights(found[1])[0])
    said = judge(agent, session)
    return {"value": said["value"], "entropy": said["entropy"]}


def _entropy(logits: np.ndarray) -> np.ndarray:
    """[T] −Σ p log p of logits [T, A]."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1)
    return np.maximum(np.log(total) - (weights * shifted).sum(-1) / total, 0.0)


def _at(column: np.ndarray | None, t: int) -> float | None:
    return None if column is None or column.ndim != 1 else float(column[t])


def _table(names: tuple[str, ...], rows: list[list[Any]]) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for name in names:
        left, whole = name in ("id", "player", "end"), name == "id"  # an id is copied, so it must not be cut
        longest = max((len(str(row[0])) for row in rows), default=0) if whole else 0
        table.add_column(name.replace("_", "-"), justify="left" if left else "right", min_width=longest, no_wrap=whole)
    for row in rows:
        table.add_row(*(escape(_cell(name, value)) for name, value in zip(names, row, strict=True)))
    return table


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "bytes":
        return metrics.size(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return " ".join(_cell("", part) for part in value)
    return (
        " ".join(f"{key}={_cell('', part)}" for key, part in value.items()) if isinstance(value, dict) else str(value)
    )
