"""Keys: shown once, stored hashed, found again, refused with the reason only to who holds them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossrank.errors import SetupError, Unauthorized
from crossrank_server.accounts.keys import NewKey, create_key, list_keys, revoke_key
from crossrank_server.accounts.redis_limits import RedisLimits
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import SCHEMA_VERSION
from tests.key_store import find_account


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


def test_a_key_identifies_its_account(store: Store) -> None:
    key = create_key(
        store,
        NewKey(
            name="team", scopes=("rerank", "account"), requests_per_minute=5, documents_per_minute=6, credit_nano_usd=7
        ),
    )
    account = find_account(store, key)
    assert key.startswith(f"cr-{account.key_id}-")
    assert (account.name, account.scopes) == ("team", {"rerank", "account"})
    assert (account.requests_per_minute, account.documents_per_minute, account.prepaid) == (5, 6, True)


def test_every_key_is_another_and_long_enough_that_nobody_guesses_it(store: Store) -> None:
    secrets = {create_key(store, NewKey(name="n")).split("-", 2)[2] for _ in range(20)}
    assert len(secrets) == 20
    assert all(len(secret) >= 43 for secret in secrets)


def test_the_secret_is_nowhere_in_the_file(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/s.db")
    secret = create_key(store, NewKey(name="a-name-to-find")).split("-", 2)[2].encode()
    store.close()
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"a-name-to-find" in content
    assert secret not in content
    assert (tmp_path / "s.db").stat().st_mode & 0o077 == 0


def refusal(store: Store, token: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as refused:
        find_account(store, token)
    return refused.value


def test_unknown_keys_are_refused_alike_whatever_is_wrong_with_them(store: Store) -> None:
    key = create_key(store, NewKey(name="n"))
    revoked = create_key(store, NewKey(name="n"))
    revoke_key(store, revoked)
    wrong = [
        "",
        "x",
        "é" * 20,
        "cr-",
        key[:-1],
        key + "x",
        key.upper(),
        key.replace("cr-", "sk-"),
        key[:16] + "A" * 43,  # a good id with another secret
        revoked[:16] + "A" * 43,
        "cr-000000000000-" + "A" * 43,
        "cr-' or 1=1 --",
    ]
    refusals = [refusal(store, token) for token in wrong]
    assert {(error.code, error.message) for error in refusals} == {("invalid_api_key", refusals[0].message)}
    assert "not known here" in refusals[0].message


def test_the_holder_of_a_key_is_told_that_it_was_revoked_or_has_expired(store: Store) -> None:
    revoked = create_key(store, NewKey(name="n"))
    revoke_key(store, revoked)  # by the whole key
    revoke_key(store, revoked.split("-")[1])  # and again by its id
    expired = create_key(store, NewKey(name="n", expires_at=time.time() - 1))
    good = create_key(store, NewKey(name="n", expires_at=time.time() + 60))
    assert refusal(store, revoked).code == "revoked_api_key"
    error = refusal(store, expired)
    assert error.code == "expired_api_key"
    assert "expired on 2" in error.message
    assert find_account(store, good).expires_at is not None
    assert [key.state for key in list_keys(store)] == ["revoked", "expired", "good"]


@pytest.mark.parametrize("key", ["000000000000", "x", "", "cr-000000000000-" + "S" * 43])
def test_a_key_that_is_not_there_cannot_be_revoked_and_its_secret_is_not_repeated(store: Store, key: str) -> None:
    with pytest.raises(SetupError, match="there is no key") as refused:
        revoke_key(store, key)
    assert "SSS" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("x", "--store is 'x'"),
        ("sqlite://", "give sqlite:///file.db"),
        ("mysql://u:geheim@h/d", "--store is 'mysql'"),
        ("postgresql://u:p@geheim@127.0.0.1:1/d", "in a password written %40"),
        ("postgresql://u:p/geheim@127.0.0.1:1/d", "give sqlite:///file.db|cannot be opened"),
        ("postgresql://u:p:geheim@127.0.0.1:1/d", r"postgresql://127\.0\.0\.1:1/d cannot be opened"),
        ("postgresql://u:x@127.0.0.1:geheim/d", "give sqlite:///file.db"),
        ("postgresql://127.0.0.1:1/d?password=geheim", r"postgresql://127\.0\.0\.1:1/d cannot be opened"),
        ("postgresql://127.0.0.1:1/d?nonsense=geheim", "invalid connection option"),
        ("sqlite:////nowhere/at/all.db", "/nowhere/at does not exist"),
        ("postgresql://u:geheim@127.0.0.1:1/d", r"postgresql://127\.0\.0\.1:1/d cannot be opened"),
    ],
)
def test_a_store_that_cannot_be_used_is_named_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SetupError, match=message) as refused:
        Store(url)
    assert "geheim" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "redis://:geheim@127.0.0.1:1",
        "redis://:p@geheim@127.0.0.1:1",
        "redis://:p/geheim@127.0.0.1:1",
        "redis://:p#geheim@127.0.0.1:1",
        "redis://:geheim@127.0.0.1:port",
        "redis://127.0.0.1:1/geheim",
        "redisgeheim://127.0.0.1:1",
        "memcached://u:geheim@127.0.0.1:1",
        "redis://127.0.0.1:1?nonsense=geheim",
        "redis+sentinel://:geheim@127.0.0.1:1",
    ],
)
def test_a_store_of_limits_that_cannot_be_used_is_named_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SetupError, match="--limits-store") as refused:
        RedisLimits(url)
    if not url.startswith("redisgeheim"):  # a scheme is shown
        assert "geheim" not in refused.value.message
    assert "geheim" not in caplog.text


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    Store(f"sqlite:///{tmp_path}/s.db").close()
    Store(f"sqlite:///{tmp_path}/s.db").close()  # its own version is taken
    connection = sqlite3.connect(tmp_path / "s.db")
    with connection:
        connection.execute("UPDATE crossrank_schema SET version = ?", (SCHEMA_VERSION + 1,))
    connection.close()
    with pytest.raises(SetupError, match=f"version {SCHEMA_VERSION + 1}, this crossrank needs {SCHEMA_VERSION}"):
        Store(f"sqlite:///{tmp_path}/s.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("no database at all " * 100)
    with pytest.raises(SetupError, match="not a database"):
        Store(f"sqlite:///{tmp_path}/s.db")
