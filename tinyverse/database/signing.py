"""Signing: HMAC-SHA256 before sessions and weights, so that only who knows TINYVERSE_SECRET can have written them.

A signature is bound to the run, its run_id, the kind of thing, the version of weights, and every byte of the blob. A session's
player, number and version stand in the blob. A signature hides nothing, and whoever has the secret can sign anything:
players need it too. It keeps out who can write to the server without knowing the secret.
"""

import hmac
import os
from collections.abc import Callable, Sequence
from typing import Any

from tinyverse.core.errors import CodecError, SettingsError
from tinyverse.database.base import UNSIGNED, WRONG_SIGNATURE, Database, Episodes, State, Worker

SHORTEST = 16  # characters of a secret
SIZE = 32  # bytes of a signature


class Signer:
    """Signs and verifies what belongs to one run. Raises SettingsError where the secret is too short."""

    def __init__(self, secret: str, run: str) -> None:
        if len(secret) < SHORTEST:
            raise SettingsError(
                f"TINYVERSE_SECRET has {len(secret)} characters; take {SHORTEST} or more, like those of: openssl rand -hex 32"
            )
        self._key, self._run = secret.encode(), run

    def sign(self, run_id: str, kind: str, blob: bytes) -> bytes:
        """The signature of a blob, 32 bytes. `kind` is "session", or "weights 7" of version 7."""
        context = "\0".join(("tinyverse", self._run, run_id, kind)).encode()  # none of them can hold a zero
        return hmac.digest(hmac.digest(self._key, context, "sha256"), blob, "sha256")

    def verify(self, signature: bytes, run_id: str, kind: str, blob: bytes) -> bool:
        return hmac.compare_digest(signature, self.sign(run_id, kind, blob))


def _of_the_wrapped(name: str) -> Callable[..., Any]:
    return lambda self, *given, **named: getattr(self._database, name)(*given, **named)


class SignedDatabase(Database):
    """Signs what goes into another database, and verifies what comes out.

    A session with a wrong signature comes out as UNSIGNED, so its place is known and its reader rejects it.
    """

    def __init__(self, database: Database, secret: str, run: str) -> None:
        self._database, self._signer, self.run = database, Signer(secret, run), run
        self._run_id: str | None = None  # as of the last State

    def append(self, blobs: Sequence[bytes], *, worker: Worker | None = None, episodes: Episodes = ()) -> State:
        run_id = self.state().run_id if self._run_id is None else self._run_id
        signed = [self._signer.sign(run_id, "session", blob) + blob for blob in blobs]
        return self._noted(self._database.append(signed, worker=worker, episodes=episodes))

    def read(self, after: str, limit: int, wait: float = 0.0) -> tuple[list[tuple[str, bytes]], State]:
        entries, state = self._database.read(after, limit, wait)
        return self._verified(entries, state.run_id), self._noted(state)

    def newest(self, limit: int) -> list[tuple[str, bytes]]:
        return self._verified(self._database.newest(limit), self.state().run_id)

    def put_weights(
        self, blob: bytes, version: int, *, holder: str, update: int = 0, step: int = 0, run_id: str | None = None
    ) -> None:
        run_id = run_id if run_id is not None else self.state().run_id or None
        signed = self._signer.sign(run_id or "", f"weights {version}", blob) + blob
        self._database.put_weights(signed, version, holder=holder, update=update, step=step, run_id=run_id)

    def get_weights(self, newer_than: int = -1, version: int | None = None) -> tuple[int, bytes] | None:
        """As of Database. Raises CodecError where their signature is wrong."""
        found = self._database.get_weights(newer_than, version)
        if found is None:
            return None
        number, blob = found[0], found[1][SIZE:]
        if not self._signer.verify(found[1][:SIZE], self.state().run_id, f"weights {number}", blob):
            raise CodecError(f"weights version {number} of run {self.run}: {WRONG_SIGNATURE}")
        return number, blob

    def state(self) -> State:
        return self._noted(self._database.state())

    def beat(self, worker: Worker) -> State:
        return self._noted(self._database.beat(worker))

    def size(self) -> dict[str, int]:
        size = self._database.size()
        return {**size, "bytes": max(0, size["bytes"] - SIZE * size["sessions"])}

    create, meta, ask_stop, clear, close = map(_of_the_wrapped, ("create", "meta", "ask_stop", "clear", "close"))
    acquire_lease, release_lease = map(_of_the_wrapped, ("acquire_lease", "release_lease"))
    leave, workers, report = map(_of_the_wrapped, ("leave", "workers", "report"))
    count, counters, episodes = map(_of_the_wrapped, ("count", "counters", "episodes"))
    log_metrics, metrics = map(_of_the_wrapped, ("log_metrics", "metrics"))
    log_error, errors = map(_of_the_wrapped, ("log_error", "errors"))

    @property
    def unreadable(self) -> int:
        return self._database.unreadable

    def _noted(self, state: State) -> State:
        self._run_id = state.run_id
        return state

    def _verified(self, entries: list[tuple[str, bytes]], run_id: str) -> list[tuple[str, bytes]]:
        verify = self._signer.verify
        split = ((key, signed[:SIZE], signed[SIZE:]) for key, signed in entries)
        return [
            (key, blob if verify(signature, run_id, "session", blob) else UNSIGNED) for key, signature, blob in split
        ]


def signed(database: Database, run: str) -> Database:
    """The database itself, or signing as well where TINYVERSE_SECRET is set."""
    secret = os.environ.get("TINYVERSE_SECRET")
    return SignedDatabase(database, secret, run) if secret else database
