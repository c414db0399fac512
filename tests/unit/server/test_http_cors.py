"""CORS: off unless asked for; then every answer, errors too, can be read by the scripts of the origins named."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from crossrank.errors import SetupError
from crossrank_server.commands.options import settings_from_options
from crossrank_server.settings import ServeSettings
from tests.http_app import client_of, make_app
from tests.unit.server.test_http_internal_errors import FailingEngine

APP, OTHER = "https://app.example.org", "https://other.example.org"
BODY = {"query": "q", "documents": ["a", "b"]}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-tier",
}


@pytest.fixture(scope="module")
def apps(builtin):
    return {origins: make_app(builtin, cors_origins=origins) for origins in ((), (APP,), ("*",))}


@pytest.fixture
def ask(apps):
    """Send a request to the application that allows some origins."""

    async def send(origins: tuple[str, ...], method: str, path: str, **arguments) -> httpx.Response:
        async with client_of(apps[origins]) as client:
            return await client.request(method, path, **arguments)

    return send


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_without_the_setting_no_answer_speaks_of_origins(ask):
    for method, path in (("OPTIONS", "/v1/rerank"), ("POST", "/v1/rerank"), ("GET", "/health")):
        answer = await ask((), method, path, headers={"origin": APP, **PREFLIGHT})
        assert cors_headers(answer) == {}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/rerank/", "/rerank", "/v1/models", "/nowhere"])
async def test_a_preflight_allows_the_origin_its_key_and_its_method(ask, path):
    answer = await ask((APP,), "OPTIONS", path, headers={"origin": APP, **PREFLIGHT})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
    assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("origin", [OTHER, "null", APP + ".evil.example", APP + ":8443", "http://app.example.org"])
async def test_another_origin_is_allowed_nothing(ask, origin):
    for method in ("OPTIONS", "POST"):
        answer = await ask((APP,), method, "/v1/rerank", json=BODY, headers={"origin": origin, **PREFLIGHT})
        assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "Origin"


async def test_all_origins_may_be_allowed(ask):
    for origin in (APP, OTHER, "null"):
        answer = await ask(("*",), "POST", "/v1/rerank", json=BODY, headers={"origin": origin})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("method", "path", "arguments", "status"),
    [
        ("POST", "/v1/rerank", {"json": BODY}, 200),
        ("GET", "/v1/models", {}, 200),
        ("HEAD", "/health", {}, 200),
        ("POST", "/v1/rerank", {"content": b"{"}, 400),
        ("GET", "/nowhere", {}, 404),
        ("GET", "/v1/rerank", {}, 405),
        ("POST", "/v1/rerank", {"content": b" " * 1_000_001}, 413),
        ("POST", "/v1/rerank", {"content": b"x", "headers": {"content-encoding": "br"}}, 415),
        ("POST", "/v1/rerank", {"content": b"x", "headers": {"expect": "tea"}}, 417),
    ],
)
async def test_answers_and_errors_can_be_read_with_the_headers_they_have(ask, method, path, arguments, status):
    headers = {"origin": APP, **arguments.pop("headers", {})}
    answer = await ask((APP,), method, path, headers=headers, **arguments)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == APP
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    # Those that every answer has, that scripts may see anyway, or that are for the browser.
    usual = {"content-length", "content-type", "vary", "connection", "allow"}
    usual |= {"content-security-policy", "x-content-type-options", "referrer-policy"}
    own = {name for name in answer.headers if not name.startswith("access-control-")} - usual
    assert own <= set(exposed)
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-requests", "x-truncated-documents"} <= set(exposed)


async def test_a_failure_within_the_server_can_be_read_too(builtin):
    app = make_app(builtin, FailingEngine(RuntimeError("broken")), cors_origins=(APP,))
    async with client_of(app) as client:
        answer = await client.post("/v1/rerank", json=BODY, headers={"origin": APP})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == APP


async def test_so_can_the_answer_to_a_request_given_up_at_shutdown(builtin):
    class WaitingEngine(FailingEngine):
        async def score(self, batch):
            await asyncio.Event().wait()

    app = make_app(builtin, WaitingEngine(0.0), cors_origins=(APP,))
    async with client_of(app) as client:
        request = asyncio.ensure_future(client.post("/v1/rerank", json=BODY, headers={"origin": APP}))
        await asyncio.sleep(0.05)
        request.cancel()
        answer = await request
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", ""),
        (" * ", "*"),
        (APP, APP),
        (f" {APP.upper()} ,http://localhost:3000,", f"{APP},http://localhost:3000"),
        ("https://app.example.org:443,http://x:80,http://x:443", "https://app.example.org,http://x,http://x:443"),
        ("http://[::1]:3000,capacitor://localhost", "http://[::1]:3000,capacitor://localhost"),
    ],
)
def test_origins_are_kept_as_browsers_send_them(given, kept):
    assert settings_from_options(ServeSettings, {"cors_origin": given}).cors_origin == kept


@pytest.mark.parametrize(
    "given",
    [
        "app.example.org",
        f"{APP}/",
        f"{APP}/app",
        "https://",
        "https://*.example.org",
        "null",
        "true",
        f"{APP},*",
        "https://user@x",
        "https://x?y",
        "https://x:port",
        "https://a b",
    ],
)
def test_what_is_no_origin_is_refused_at_start_with_the_remedy(given):
    with pytest.raises(SetupError, match=r"--cors-origin \(CROSSRANK_CORS_ORIGIN\) is .* is no origin: write scheme"):
        settings_from_options(ServeSettings, {"cors_origin": given})
