"""Keys, limits and credit over HTTP: every refusal, what it says, and what a good key sees of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from crossrank_server.accounts.keys import revoke_key
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.key_store import new_key, store_address
from tests.server_process import RunningServer, running_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/s.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[RunningServer]:
    url = store_address(store)
    with running_server("--store", url, "--flush-window-s", "0.2", "--max-documents", "500") as process:
        yield process
        log = process.log.read_text()
        assert "Traceback" not in log
        assert "cr-" not in log, "a key was logged"


def rerank(server: RunningServer, token: str | None, documents: int = 2, **headers: str) -> httpx.Response:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    body = {"query": "q", "documents": ["a"] * documents}
    return httpx.post(f"{server.base_url}/v1/rerank", json=body, headers=headers)


def get(server: RunningServer, path: str, token: str | None) -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.get(server.base_url + path, headers=headers)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error", "error_type", "message", "detail"}
    assert body["message"] == body["detail"] == body["error"]["message"]
    return dict(body["error"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/models", "/account", "/v1/account"])
@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic dTpw", "missing_api_key"),
        ("Bearer sk-unknown", "invalid_api_key"),
        ("Bearer cr-000000000000-" + "A" * 43, "invalid_api_key"),
        ("Bearer " + "x" * 8000, "invalid_api_key"),
    ],
)
def test_without_a_good_key_every_route_but_health_is_a_401(
    server: RunningServer, path: str, authorization: str | None, code: str
) -> None:
    method = "POST" if path == "/v1/rerank" else "GET"
    headers = {} if authorization is None else {"authorization": authorization}
    response = httpx.request(method, server.base_url + path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = error_of(response)
    assert (error["type"], error["code"]) == ("authentication_error", code)
    assert get(server, "/health/ready", None).status_code == 200


def test_an_expired_and_a_revoked_key_are_told_apart(server: RunningServer, store: Store) -> None:
    expired = new_key(store, expires_at=time.time() - 1)
    revoked = new_key(store)
    revoke_key(store, revoked)
    assert error_of(rerank(server, expired))["code"] == "expired_api_key"
    assert error_of(rerank(server, revoked))["code"] == "revoked_api_key"


def test_a_key_is_refused_within_seconds_of_its_revocation(server: RunningServer, store: Store) -> None:
    token = new_key(store)
    assert rerank(server, token).status_code == 200
    revoke_key(store, token)
    time.sleep(5.1)  # the stated time
    assert error_of(rerank(server, token))["code"] == "revoked_api_key"


def test_the_key_may_come_as_x_api_key(server: RunningServer, store: Store) -> None:
    response = httpx.get(f"{server.base_url}/v1/models", headers={"x-api-key": new_key(store)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("scope", "good"), [("rerank", "/v1/rerank"), ("models", "/v1/models"), ("account", "/account")]
)
def test_a_scope_opens_its_route_and_no_other(server: RunningServer, store: Store, scope: str, good: str) -> None:
    token = new_key(store, scopes=(scope,))
    for path in ("/v1/rerank", "/v1/models", "/account"):
        response = rerank(server, token) if path == "/v1/rerank" else get(server, path, token)
        if path == good:
            assert response.status_code == 200
        else:
            assert response.status_code == 403
            error = error_of(response)
            assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
            assert f"has the scopes {scope}, and this needs" in error["message"]


def test_spent_credit_is_a_402_with_balance_cost_and_remedy(server: RunningServer, store: Store) -> None:
    token = new_key(store, credit_nano_usd=100_000)  # twelve documents and a half
    assert rerank(server, token, 10).status_code == 200
    response = rerank(server, token, 3)
    assert response.status_code == 402
    error = error_of(response)
    assert (error["type"], error["code"]) == ("insufficient_quota", "out_of_credit")
    assert "0.000020 USD of credit left and this request costs 0.000024 USD" in error["message"]
    assert "crossrank keys credit" in error["message"]
    assert rerank(server, token, 2).status_code == 200
    assert rerank(server, token, 1, **{"x-tier": "batch"}).status_code == 200  # at half the price
    assert rerank(server, token, 1).status_code == 402


def test_the_limit_of_requests_is_a_429_that_says_when_to_come_again(server: RunningServer, store: Store) -> None:
    token = new_key(store, requests_per_minute=3)
    headers = [rerank(server, token).headers for _ in range(3)]
    assert [h["x-ratelimit-remaining-requests"] for h in headers] == ["2", "1", "0"]
    assert {h["x-ratelimit-limit-requests"] for h in headers} == {"3"}
    assert "x-ratelimit-limit-documents" not in headers[0]
    response = rerank(server, token)
    assert response.status_code == 429
    error = error_of(response)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= error["retry_after_s"] <= 120
    assert response.headers["retry-after"] == str(error["retry_after_s"])
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < float(response.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 120


def test_the_limit_of_documents_is_a_429_and_a_request_over_all_of_it_a_400(
    server: RunningServer, store: Store
) -> None:
    token = new_key(store, documents_per_minute=10)
    assert rerank(server, token, 6).headers["x-ratelimit-remaining-documents"] == "4"
    response = rerank(server, token, 5)
    assert response.status_code == 429
    assert "10 documents a minute and has 4 left, the request has 5" in error_of(response)["message"]
    assert rerank(server, token, 4).status_code == 200
    response = rerank(server, token, 11)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["param"]) == ("over_key_limit", "documents")
    assert "retry-after" not in response.headers


def test_every_answer_to_a_limited_key_shows_its_limits(server: RunningServer, store: Store) -> None:
    token = new_key(store, requests_per_minute=100, documents_per_minute=400, credit_nano_usd=2_000_000)
    authorization = {"authorization": f"Bearer {token}"}
    url = f"{server.base_url}/v1/rerank"
    answers = {
        200: rerank(server, token),
        400: httpx.post(url, content=b"{", headers=authorization),
        402: rerank(server, token, 400 - 2),
        404: httpx.post(url, json={"query": "q", "documents": ["a"], "model": "x"}, headers=authorization),
        429: rerank(server, token, 400, **{"x-tier": "batch"}),
    }
    for status, response in answers.items():
        assert response.status_code == status
        assert response.headers["x-ratelimit-remaining-requests"] == "99"
        assert response.headers["x-ratelimit-remaining-documents"] == "398"
    for path in ("/v1/models", "/account"):
        assert get(server, path, token).headers["x-ratelimit-remaining-requests"] == "99"


def test_the_account_shows_limits_credit_and_usage_up_to_the_last_request(server: RunningServer, store: Store) -> None:
    token = new_key(store, name="search team", requests_per_minute=9, credit_nano_usd=5 * 10**9, expires_at=2e9)
    tokens = rerank(server, token, 100).json()["usage"]["total_tokens"]
    rerank(server, token, 1, **{"x-tier": "batch"})
    assert error_of(rerank(server, token, 501))["code"] == "too_many_documents"
    account = get(server, "/v1/account", token).json()
    assert account["usage"]["total"].pop("tokens") > tokens
    account["usage"].pop("today")
    assert account == {
        "object": "account",
        "keys_required": True,
        "key": {"id": token.split("-")[1], "name": "search team", "expires_at": "2033-05-18T03:33:20+00:00"},
        "scopes": ["rerank", "models", "account", "metrics"],
        "limits": {"requests_per_minute": 9, "documents_per_minute": None},
        "currency": "USD",
        "balance": 4.999196,
        "credit": {"granted": 5.0, "spent": 0.000804, "reserved": 0.0},
        "usage": {"total": {"requests": 2, "documents": 101, "cost_usd": 0.000804}},
    }
    rows = usage_by_day(store, UsageFilter(key_id=token.split("-")[1]), by_model=True)
    assert [(row["model"], row["tier"], row["requests"], row["documents"]) for row in rows] == [
        ("crossrank-mini", "batch", 1, 1),
        ("crossrank-mini", "realtime", 1, 100),
    ]


def test_a_key_without_credit_is_metered_without_an_end(server: RunningServer, store: Store) -> None:
    token = new_key(store)
    response = rerank(server, token)
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]
    account = get(server, "/account", token).json()
    assert (account["balance"], account["credit"]) == (None, None)
    assert account["usage"]["total"]["documents"] == 2


def test_the_models_show_their_prices(server: RunningServer, store: Store) -> None:
    (model,) = get(server, "/v1/models", new_key(store)).json()["data"]
    assert model["pricing"] == {"currency": "USD", "per_1000_documents": {"realtime": 0.008, "batch": 0.004}}


def test_without_keys_the_account_says_so_and_prices_are_shown_all_the_same() -> None:
    with running_server("--prices", "builtin=0.02/0.015") as server:
        account = get(server, "/account", "any").json()
        assert (account["keys_required"], account["key"], account["balance"]) == (False, None, None)
        (model,) = get(server, "/v1/models", None).json()["data"]
        assert model["pricing"]["per_1000_documents"] == {"realtime": 0.02, "batch": 0.015}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--allow-anonymous"),
        (["--host", "::"], "crossrank keys create"),
        (["--store", "nonsense"], "--store is 'nonsense'"),
        (["--store", "sqlite:////nowhere/at/all.db"], "/nowhere/at does not exist"),
        (["--store", "{store}", "--limits-store", "redis://127.0.0.1:1"], "--limits-store"),
        (["--store", "{store}", "--limits-store", "memcached://127.0.0.1"], "give redis://host:6379"),
        (["--prices", "x"], "--prices has 'x'"),
        (["--flush-window-s", "0"], "--flush-window-s"),
    ],
)
def test_a_server_that_would_be_open_to_all_or_cannot_keep_accounts_does_not_start(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    given = [argument.format(store=f"sqlite:///{tmp_path}/s.db") for argument in arguments]
    with pytest.raises(RuntimeError, match="exit status 1") as refused, running_server(*given):
        pytest.fail("it started")
    assert message in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_it_serves_everybody_if_told_so_and_warns_of_a_store_without_keys(tmp_path: Path) -> None:
    with running_server("--host", "0.0.0.0", "--allow-anonymous") as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/v1/models").status_code == 200
    with running_server("--store", f"sqlite:///{tmp_path}/s.db") as server:
        assert "the store has no keys yet" in server.log.read_text()
