"""Signing: who does not know the secret can neither make sessions and weights nor move them elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator

import pytest

from tests.helpers.database_contract import ME, DatabaseContract
from tests.helpers.people import a_trainer
from tests.trainer.test_trainer import some_sessions
from tinyverse.core.errors import CodecError, SettingsError
from tinyverse.database.base import BEGINNING, Database
from tinyverse.database.connection import open_database
from tinyverse.database.memory import MemoryDatabase
from tinyverse.database.redis import RedisDatabase
from tinyverse.database.signing import SIZE, UNSIGNED, SignedDatabase, Signer

SECRET = "a secret of more than 16 characters"


class TestSignedDatabase(DatabaseContract):
    @pytest.fixture
    def database(self) -> Database:
        return SignedDatabase(MemoryDatabase(), SECRET, "run")


class TestSignedDatabaseOnAServer(DatabaseContract):
    @pytest.fixture
    def database(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:  # type: ignore[override]
        monkeypatch.setenv("TINYVERSE_SECRET", SECRET)
        made = open_database(redis_url, f"test-{secrets.token_hex(4)}")
        yield made
        made.clear()
        made.close()


def a_database(url: str, run: str, secret: str = SECRET) -> Database:
    inner = RedisDatabase(url, run)
    return SignedDatabase(inner, secret, run) if secret else inner


@pytest.fixture
def run() -> str:
    return f"test-{secrets.token_hex(4)}"


def test_the_signature_is_hmac_sha256_of_key_context_and_blob() -> None:
    key = hmac.new(SECRET.encode(), b"tinyverse\0pong\0epoch\0session", hashlib.sha256).digest()
    assert Signer(SECRET, "pong").sign("epoch", "session", b"blob") == hmac.new(key, b"blob", hashlib.sha256).digest()


def test_a_signature_fits_nothing_else() -> None:
    signer = Signer(SECRET, "pong")
    made = signer.sign("e", "weights 7", b"blob")
    assert signer.verify(made, "e", "weights 7", b"blob")
    for other in (("f", "weights 7", b"blob"), ("e", "weights 8", b"blob"), ("e", "session", b"blob"), ("e", "weights 7", b"blub")):  # fmt: skip
        assert not signer.verify(made, *other)
    assert not Signer(SECRET, "pong2").verify(made, "e", "weights 7", b"blob")
    assert not Signer(SECRET + "x", "pong").verify(made, "e", "weights 7", b"blob")
    assert not signer.verify(b"", "e", "weights 7", b"blob") and not signer.verify(made[:-1], "e", "weights 7", b"blob")


@pytest.mark.parametrize("secret", ["", "another secret, as long as that"])
def test_sessions_without_the_secret_are_rejected_and_counted(redis_url: str, run: str, secret: str) -> None:
    ours, theirs = a_database(redis_url, run), a_database(redis_url, run, secret)
    trainer = a_trainer(ours)
    trainer.join()
    good, forged = some_sessions(1), some_sessions(1, player="mallory")
    theirs.append([forged[0].encode()])
    ours.append([good[0].encode()])
    trainer.feed()
    assert len(trainer.replay) == 1 and sum(trainer.feeder.rejected.values()) == 1
    assert "TINYVERSE_SECRET" in next(iter(trainer.feeder.rejected))
    assert [blob == UNSIGNED for _, blob in ours.newest(5)] == [True, False]


@pytest.mark.parametrize("secret", ["", "another secret, as long as that"])
def test_weights_without_the_secret_are_not_taken(redis_url: str, run: str, secret: str) -> None:
    ours, theirs = a_database(redis_url, run), a_database(redis_url, run, secret)
    ours.create({"spec": "s"})
    ours.acquire_lease(ME)
    ours.put_weights(b"right", 1, holder=ME)
    assert ours.get_weights() == (1, b"right")
    theirs.put_weights(b"forged", 2, holder=ME)
    with pytest.raises(CodecError, match=r"version 2 .*TINYVERSE_SECRET"):
        ours.get_weights()
    assert ours.get_weights(version=1) == (1, b"right")


def test_what_was_signed_for_one_epoch_run_or_version_is_no_good_elsewhere() -> None:
    stores = [MemoryDatabase(), MemoryDatabase()]
    ours, other = (SignedDatabase(store, SECRET, name) for store, name in zip(stores, ("one", "two"), strict=True))
    for database in (ours, other):
        database.create({"spec": "s"})
        database.acquire_lease(ME)
        database.append([b"session"])
        database.put_weights(b"old", 1, holder=ME)
    taken = [blob for _, blob in stores[0].newest(1)]
    assert len(taken[0]) == SIZE + len(b"session")
    other.append([b"another"])
    stores[1].append(taken)
    assert [blob for _, blob in other.read(BEGINNING, 9)[0]] == [b"session", b"another", UNSIGNED]
    ours.clear()
    ours.create({"spec": "s"})
    stores[0].append(taken)  # kept from an earlier incarnation
    assert [blob for _, blob in ours.read(BEGINNING, 9)[0]] == [UNSIGNED] == [blob for _, blob in ours.newest(9)]
    found = stores[1].get_weights()
    assert found is not None
    stores[1].put_weights(found[1], 2, holder=ME)  # the old weights, called new ones
    with pytest.raises(CodecError, match="version 2"):
        other.get_weights()


def test_a_signed_database_counts_no_signatures() -> None:
    database = SignedDatabase(MemoryDatabase(), SECRET, "one")
    database.append([b"12345"] * 2)
    assert database.size() == {"sessions": 2, "bytes": 10}


def test_a_secret_that_is_too_short(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setenv("TINYVERSE_SECRET", "sesame")
    with pytest.raises(SettingsError, match="6 characters") as caught:
        open_database(redis_url, "x")
    assert "sesame" not in str(caught.value)
