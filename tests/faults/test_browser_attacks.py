"""What a page that a user has opened can do to a server on the user's own machine, and to the server's own pages."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from crossrank.bundles.catalog import BUILTIN
from crossrank.errors import SetupError
from crossrank_server.commands.options import settings_from_options
from crossrank_server.settings import ServeSettings
from tests.browser import Page, running_browser
from tests.http_app import client_of, make_app
from tests.raw_http import Answer, connected, request
from tests.server_process import RunningServer, running_server

BODY = json.dumps({"query": "q", "documents": ["a", "b"]}).encode()
MODEL = BUILTIN.model_id
EVIL = "evil.example"
HOSTILE = "<img src=x onerror=\"window.owned=1\"><svg onload='window.owned=1'><script>window.owned=1</script>"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--log-format", "json") as running:
        yield running


def raw(server: RunningServer, *heads: str, method: str = "GET", version: str = "1.1") -> Answer:
    lines = [f"{method} /v1/models HTTP/{version}", *heads, "Connection: close"]
    with connected(server.port) as connection:
        connection.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return connection.answer()


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:99", "192.168.1.5:8000"],
)
def test_a_server_on_loopback_answers_by_its_own_names_and_by_addresses(server, host):
    assert raw(server, f"Host: {host}").status == 200


@pytest.mark.parametrize(
    "host",
    [
        *(EVIL, f"{EVIL}:8000", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example", "", " ", "a b"),
        *("localhost,evil", "user@localhost", "localhost:80:80", "[::1", "[localhost]x", "caf\xe9", "127.0.0.1/x"),
    ],
)
def test_any_other_host_is_refused_with_the_remedy(server, host):
    answer = raw(server, f"Host: {host}")
    assert answer.status == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed-hosts" in answer.json()["message"]


def test_a_request_has_exactly_one_host(server):
    for heads in ((), ("Host: localhost", "Host: localhost"), ("Host: localhost", "Host: evil.example")):
        answer = raw(server, *heads)
        assert answer.status == 400
        assert answer.json()["error"]["code"] == "invalid_host"
        assert f"has {len(heads)} headers Host; send exactly one" in answer.json()["message"]
    assert raw(server, version="1.0").status == 200


def test_a_body_behind_a_refused_host_is_no_request(server):
    head, body = request("/v1/rerank", BODY)
    with connected(server.port) as connection:
        connection.send(head.replace(b"Host: localhost", b"Host: evil.example") + body)
        assert connection.answer().status == 403
        assert connection.closed()


@pytest.mark.parametrize("path", ["/metrics/", "/v1/models/", "/docs/", "//docs//", "/static-offline-docs", "/page/"])
def test_nothing_redirects_to_a_host_of_the_request(server, path):
    answer = httpx.get(f"{server.base_url}{path}")
    assert "location" not in answer.headers
    assert answer.status_code in (200, 404)


def post(server: RunningServer, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.base_url}/v1/rerank", content=BODY, headers=named)


def test_clients_that_are_no_browsers_need_no_particular_header(server):
    for content_type in ("application/json", "application/x-www-form-urlencoded", "text/plain"):
        assert post(server, content_type=content_type).status_code == 200
    assert post(server).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
        {"origin": "http://evil.example", "sec_fetch_site": "cross-site", "content_type": "application/json"},
        {"sec_fetch_site": "cross-site"},
        {"origin": "", "sec_fetch_site": "something new"},
    ],
    ids=str,
)
def test_a_post_of_a_foreign_page_is_refused_with_the_remedy(server, headers):
    answer = post(server, **headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "--cors-origin" in answer.json()["message"]


def test_a_post_of_the_servers_own_page_is_answered(server):
    own = server.base_url
    assert post(server, origin=own, sec_fetch_site="same-origin").status_code == 200
    assert post(server, origin=own).status_code == 200
    assert post(server, sec_fetch_site="none").status_code == 200


async def test_origins_of_cors_may_post_and_only_they(builtin):
    app = make_app(builtin, cors_origins=("https://app.example.org",), allowed_hosts=("test",))
    async with client_of(app) as client:
        for origin, status in (("https://app.example.org", 200), ("https://other.example.org", 403)):
            headers = {"origin": origin, "sec-fetch-site": "cross-site"}
            assert (await client.post("/v1/rerank", content=BODY, headers=headers)).status_code == status


async def test_where_others_may_call_neither_host_nor_origin_is_checked(builtin):
    async with client_of(make_app(builtin)) as client:
        headers = {"host": EVIL, "origin": "http://evil.example", "sec-fetch-site": "cross-site"}
        assert (await client.post("/v1/rerank", content=BODY, headers=headers)).status_code == 200


def test_further_names_are_a_setting():
    with running_server("--allowed-hosts", "rerank.internal") as server:
        assert raw(server, "Host: rerank.internal:8000").status == 200
        assert raw(server, f"Host: {EVIL}").status == 403


@pytest.mark.slow
def test_on_an_address_for_others_any_name_will_do():
    with running_server("--host", "0.0.0.0", "--allow-anonymous", "--workers", "2") as server:
        assert raw(server, f"Host: {EVIL}").status == 200


@pytest.mark.parametrize("given", ["http://a", "a:80", "a/b", "a b", "*.example.org", "[::1]"])
def test_what_is_no_host_name_is_refused_at_start(given):
    with pytest.raises(SetupError, match=r"--allowed-hosts .* is no host name: write names"):
        settings_from_options(ServeSettings, {"allowed_hosts": given})


def test_a_request_id_comes_back_byte_by_byte_or_not_at_all(server):
    for given in ("caf\xe9", "\xb2\xb3", "a b", "a" * 129, "\u0661".encode().decode("latin-1")):
        head, _ = request("/v1/models", None, "X-Request-Id: PLACE")
        with connected(server.port) as connection:
            connection.send(head.replace(b"PLACE", given.encode("latin-1")))
            answered = connection.answer().headers["x-request-id"]
        assert len(answered) == 32
        assert int(answered, 16) >= 0
    assert raw(server, "Host: localhost", "X-Request-Id: a.B_9:-").headers["x-request-id"] == "a.B_9:-"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", "/page/state.json", "/metrics", "/openapi.json"])
def test_an_answer_is_no_page_and_no_script_and_is_shown_in_no_frame(server, path):
    headers = httpx.get(f"{server.base_url}{path}").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/page/page.js"])
def test_a_page_allows_no_inline_script_but_by_its_hash(server, path):
    headers = httpx.get(f"{server.base_url}{path}").headers
    (policy,) = headers.get_list("content-security-policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert all(source == "'self'" or source.startswith("'sha256-") for source in rules["script-src"].split())
    assert headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A browser for which the name of a hostile website resolves to this machine."""
    with running_browser(f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as chrome:
        yield chrome


@pytest.fixture(scope="module")
def website() -> Iterator[str]:
    """The address of a website of another origin."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>website</title>")

        def log_message(self, format: str, *args: object) -> None: ...

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


def run(browser: webdriver.Chrome, script: str, *args: object) -> object:
    return browser.execute_async_script(script, *args)  # type: ignore[no-untyped-call]


def posts(server: RunningServer) -> list[str]:
    """The codes of all POSTs so far, once a request after them is in the log."""
    mark = httpx.get(f"{server.base_url}/v1/models").headers["x-request-id"]
    server.access_line(mark)
    lines = map(json.loads, server.log.read_text().splitlines())
    return [line["code"] for line in lines if line["message"].startswith("POST ")]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/v1/rerank", "text/plain"), ("/rerank", "application/x-www-form-urlencoded"), ("/v1/score", "text/plain")],
)
def test_a_foreign_page_cannot_make_the_server_work(browser, server, website, path, content_type):
    """The page's script sends what needs no permission of the server, and learns nothing of the answer."""
    before = posts(server)
    for site in (website, website.replace("127.0.0.1", "localhost"), website.replace("127.0.0.1", EVIL)):
        browser.get(site)
        run(
            browser,
            "const [url, type, body, done] = arguments;"
            "fetch(url, {method: 'POST', mode: 'no-cors', headers: {'content-type': type}, body})"
            ".then(answer => done(answer.type), error => done('failed'))",
            f"{server.base_url}{path}",
            content_type,
            BODY.decode(),
        )
    sent = posts(server)[len(before) :]
    # Browsers of these days may refuse the third by themselves.
    assert sent in (["origin_not_allowed"] * 2, ["origin_not_allowed"] * 3)


def test_a_name_that_is_made_to_resolve_to_this_machine_reads_nothing(browser, server):
    browser.get(f"http://{EVIL}:{server.port}/")
    assert "host_not_allowed" in browser.page_source
    models = run(
        browser,
        "const done = arguments[0]; fetch('/v1/models').then(a => a.text()).then(done, error => done('failed'))",
    )
    assert MODEL not in str(models)
    browser.get(f"{server.base_url}/")
    assert MODEL in str(run(browser, "const done = arguments[0]; fetch('/v1/models').then(a => a.text()).then(done)"))


@pytest.mark.parametrize("path", ["/docs", pytest.param("/redoc", marks=pytest.mark.slow)])
def test_the_reference_of_the_api_works_within_its_policy(browser, server, path):
    browser.get_log("browser")
    browser.get(f"{server.base_url}{path}")
    WebDriverWait(browser, 20).until(lambda _: "/v1/rerank" in browser.find_element(By.TAG_NAME, "body").text)
    violations = [e["message"] for e in browser.get_log("browser") if "Content Security Policy" in e["message"]]
    # ReDoc would fetch its maker's logo.
    assert [message for message in violations if "https://cdn.redoc.ly/redoc/logo" not in message] == []


@pytest.mark.slow
def test_hostile_texts_and_model_names_run_nothing_in_the_playground(browser, builtin, tmp_path: Path):
    bundle = tmp_path / "bundle"
    shutil.copytree(builtin.path, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model_id"] = HOSTILE
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with running_server("--model", str(bundle)) as server:
        page = Page(browser, server.base_url)
        page.fill(HOSTILE, [HOSTILE, f'"{HOSTILE}', f"</textarea></li>{HOSTILE}"])
        page.rerank()
        assert len(page.ranking()) == 3
        assert HOSTILE in page.text("#list")
        assert page.run("return [window.owned, document.querySelectorAll('img').length]") == [None, 0]
        assert [message for message in page.console() if "Content Security Policy" in message] == []
