"""What the server sends for the page: small, cacheable, closed to foreign code, and nothing made up."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib.metadata import version

import httpx
import pytest

from crossrank.bundles.catalog import BUILTIN
from tests.server_process import running_server

FILES = {
    "/": "text/html",
    "/page/page.css": "text/css",
    "/page/page.js": "text/javascript",
    "/page/results.js": "text/javascript",
    "/page/snippets.js": "text/javascript",
    "/page/state.js": "text/javascript",
    "/page/favicon.svg": "image/svg+xml",
}
# Of all files together, compressed: a page that nobody waits for.
MAX_BYTES_OVER_THE_WIRE = 14_000


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running_server() as server, httpx.Client(base_url=server.base_url) as client:
        yield client


@pytest.mark.parametrize(("path", "media_type"), FILES.items())
def test_every_file_has_its_type_and_a_policy_that_lets_nothing_foreign_in(
    http: httpx.Client, path: str, media_type: str
) -> None:
    response = http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].split(";")[0] == media_type
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.split(maxsplit=1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    head = http.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", response.headers["etag"])


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_the_browser_has_is_not_sent_again(http: httpx.Client, path: str) -> None:
    first = http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = http.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert http.get(path, headers={"if-none-match": '"other"'}).content == first.content


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("br, gzip;q=0.5", "gzip"),
        ("GZIP, deflate", "gzip"),
        ("identity", None),
        ("", None),
        ("gzip;q=0", None),
        ("gzip; q=0.0, br", None),
        ("notgzip", None),
    ],
)
def test_compression_is_what_the_client_accepts(http: httpx.Client, accepted: str, encoding: str | None) -> None:
    with http.stream("GET", "/page/page.js", headers={"accept-encoding": accepted}) as response:
        sent = b"".join(response.iter_raw())
    assert response.headers.get("content-encoding") == encoding
    assert response.headers["vary"] == "accept-encoding"
    plain = gzip.decompress(sent) if encoding else sent
    assert plain.startswith(b"// The playground")
    with http.stream("GET", "/page/page.js", headers={"accept-encoding": "identity"}) as other:
        assert (other.headers["etag"] == response.headers["etag"]) == (encoding is None)


def test_the_whole_page_is_small(http: httpx.Client) -> None:
    sizes = {path: http.get(path).num_bytes_downloaded for path in FILES}
    print(sizes, sum(sizes.values()), "bytes over the wire")
    assert 0 < sum(sizes.values()) < MAX_BYTES_OVER_THE_WIRE


def test_the_state_is_that_of_the_server_and_the_catalogue(http: httpx.Client) -> None:
    response = http.get("/page/state.json")
    assert response.headers["cache-control"] == "no-store"
    state = response.json()
    (model,) = state["models"]
    assert state["version"] == version("crossrank")
    assert state["ready"] is True
    (listed,) = http.get("/v1/models").json()["data"]
    assert {name: model[name] for name in ("id", "engine", "precision", "max_length")} == {
        name: listed[name] for name in ("id", "engine", "precision", "max_length")
    }
    assert model["status"] == "ready"
    assert {name: getattr(BUILTIN, name) for name in model["card"]} == model["card"]
    assert "demonstration" in model["card"]["note"]


def test_the_page_is_no_part_of_the_api_description(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/rerank" in paths
    assert not [path for path in paths if path == "/" or path.startswith("/page")]
