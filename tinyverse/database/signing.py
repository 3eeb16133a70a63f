"""Seal: HMAC-SHA256 beside sessions and weights, so that only who knows TINYVERSE_SECRET can have written them.

A seal is bound to the run, its epoch, the kind of thing, the version of weights, and every byte of the blob; a session's
player, number and version stand in the blob. It hides nothing, and whoever has the secret can seal anything: players
need it too. What it keeps out is who can write to the server without knowing it.
"""

from __future__ import annotations

import hmac
import os

from tinyverse.core.errors import SettingsError

SHORTEST = 16  # characters of a secret


class Seal:
    """Seals and checks what belongs to one run.

    Raises:
        SettingsError: the secret is too short.
    """

    def __init__(self, secret: str, run: str) -> None:
        if len(secret) < SHORTEST:
            raise SettingsError(
                f"TINYVERSE_SECRET has {len(secret)} characters; take {SHORTEST} or more, like those of: openssl rand -hex 32"
            )
        self._key, self._run = secret.encode(), run

    def make(self, epoch: str, kind: str, blob: bytes) -> bytes:
        """32 bytes. `kind` is "session", or "weights 7" of version 7."""
        context = "\0".join(("tinyverse", self._run, epoch, kind)).encode()  # none of them can hold a zero
        return hmac.digest(hmac.digest(self._key, context, "sha256"), blob, "sha256")

    def fits(self, seal: bytes | None, epoch: str, kind: str, blob: bytes) -> bool:
        return seal is not None and hmac.compare_digest(seal, self.make(epoch, kind, blob))


def seal_of(run: str) -> Seal | None:
    """By TINYVERSE_SECRET; None where that is not set."""
    secret = os.environ.get("TINYVERSE_SECRET")
    return Seal(secret, run) if secret else None
