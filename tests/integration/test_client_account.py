"""`account()` of both clients, in front of a real server with a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from crossrank_client import Account, AsyncClient, Client, Forbidden, InvalidResponse, NotSupported, Spent
from crossrank_server.accounts.store import Store
from tests.key_store import new_key, store_address
from tests.scripted_server import Reply, ScriptedServer
from tests.server_process import RunningServer, running_server

NOTHING = Spent(0, 0, 0, 0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/s.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[RunningServer]:
    with running_server("--grpc-port", "0", "--store", store_address(store)) as running:
        yield running


def ask(kind: type, url: str, key: str = "") -> Account:
    async def awaited() -> Account:
        async with AsyncClient(url, api_key=key) as client:
            return await client.account()

    if kind is AsyncClient:
        return asyncio.run(awaited())
    with Client(url, api_key=key) as client:
        return client.account()


both = pytest.mark.parametrize("kind", [Client, AsyncClient])


@both
def test_a_key_sees_its_limits_credit_and_usage(kind: type, server: RunningServer, store: Store) -> None:
    key = new_key(store, name="team", requests_per_minute=9, credit_nano_usd=5 * 10**9, expires_at=2e9)
    with Client(server.base_url, api_key=key) as client:
        tokens = client.rerank("q", ["a"] * 100).usage.total_tokens
    spent = Spent(1, 100, tokens, 0.0008)
    account = ask(kind, server.base_url, key)
    assert account == Account(
        keys_required=True,
        key_id=key.split("-")[1],
        name="team",
        expires_at=datetime(2033, 5, 18, 3, 33, 20, tzinfo=timezone.utc),
        scopes=("rerank", "models", "account", "metrics"),
        requests_per_minute=9,
        documents_per_minute=None,
        balance_usd=4.9992,
        granted_usd=5.0,
        spent_usd=0.0008,
        reserved_usd=0.0,
        today=account.today,
        total=spent,
    )
    assert account.today in (spent, NOTHING)  # midnight may have passed


@both
def test_a_key_without_credit_or_limits_has_none(kind: type, server: RunningServer, store: Store) -> None:
    account = ask(kind, server.base_url, new_key(store))
    assert (account.balance_usd, account.granted_usd, account.expires_at) == (None, None, None)
    assert account.total == NOTHING


def test_a_key_without_the_scope_is_forbidden(server: RunningServer, store: Store) -> None:
    with pytest.raises(Forbidden, match="needs account"):
        ask(Client, server.base_url, new_key(store, scopes=("rerank",)))


def test_a_server_without_keys_says_so() -> None:
    with running_server() as server:
        account = ask(Client, server.base_url)
    assert (account.keys_required, account.key_id, account.total) == (False, None, None)
    assert account.scopes == ("rerank", "models", "account", "metrics")


@both
def test_over_grpc_it_is_said_not_to_be_there(kind: type, server: RunningServer) -> None:
    with pytest.raises(NotSupported, match="ReadAccount is no call of the gRPC interface; make a client with the http"):
        ask(kind, server.grpc_url)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"keys_required": None}, "keys_required"),
        ({"balance": "much"}, "balance"),
        ({"limits": []}, "limits"),
        ({"usage": {"today": {"requests": 1}}}, "cost_usd"),
        ({"key": {"expires_at": "x"}}, "expires_at"),
    ],
)
def test_an_answer_of_another_form_is_invalid(change: dict[str, object], field: str) -> None:
    good = {"keys_required": True, "key": {}, "scopes": [], "limits": {}, "balance": 1, "credit": None, "usage": None}
    with ScriptedServer([Reply(200, json.dumps(good).encode())]) as server:
        assert ask(Client, server.base_url).balance_usd == 1.0
    with (
        ScriptedServer([Reply(200, json.dumps({**good, **change}).encode())]) as server,
        pytest.raises(InvalidResponse, match=f"the answer has {field} = "),
    ):
        ask(Client, server.base_url)
