"""The HTTP clients of other languages, as they are: a request, an error, and once more over the same connection."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.test_curl import curl
from tests.clients.ways import DOCUMENTS, MODEL, QUERY, Reference

_PROGRAMS = Path(__file__).parent / "programs"
_BODY = json.dumps({"query": QUERY, "documents": DOCUMENTS, "model": MODEL})
# What each needs, in which of Debian's packages that is, and its command.
_CLIENTS = {
    "java": ("javac", "openjdk-17-jdk-headless", ["java", str(_PROGRAMS / "JdkHttpClient.java")]),
    "node": ("node", "nodejs", ["node", str(_PROGRAMS / "node_fetch.mjs")]),
    "go": ("go", "golang-go", ["go", "run", str(_PROGRAMS / "net_http.go")]),
}


def answers(client: str, url: str, *files: Path) -> list[tuple[int, Any]]:
    """Return status and JSON of each answer to a client's requests."""
    tool, package, command = _CLIENTS[client]
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} on this machine; Debian's package {package} has it")
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    # Go would look for a newer one of itself, and for modules.
    env = {**kept, "GOTOOLCHAIN": "local", "GO111MODULE": "off"}
    output = subprocess.run([*command, url, *map(str, files)], env=env, capture_output=True, check=True, timeout=120)
    lines = [line.split(" ", 1) for line in output.stdout.decode().splitlines()]
    return [(int(status), json.loads(body)) for status, body in lines]


def assert_is(reference: Reference, answer: Any) -> None:
    assert [result["index"] for result in answer["results"]] == reference.order
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx(reference.scores, rel=1e-6)


@pytest.mark.parametrize("client", _CLIENTS)
@pytest.mark.parametrize("route", ["/v1/rerank", "/v1/rerank/"])
def test_a_client_gets_the_servers_scores_and_its_sentence_for_an_error(client, route, server, reference, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(_BODY, encoding="utf-8")
    bad.write_text(json.dumps({"query": QUERY, "documents": DOCUMENTS, "top_n": -3}), encoding="utf-8")
    received = answers(client, server.base_url + route, good, bad, good)
    times = 2 if client == "node" else 1  # it posts each file in two ways
    assert [status for status, _ in received] == [200] * times + [400] * times + [200] * times
    for status, answer in received:
        if status == 200:
            assert_is(reference, answer)
        else:
            assert answer["error"]["param"] == "top_n"
            assert answer["message"].startswith("top_n is -3; send 0 or more")


def curl_speaks(feature: str) -> bool:
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    return feature in version.partition("Features:")[2].split()


def test_curl_that_offers_http2_is_answered_in_http1(server, reference):
    if shutil.which("curl") is None or not curl_speaks("HTTP2"):
        pytest.skip("no curl with HTTP/2 on this machine; Debian's package curl has it")
    status, _, answer = curl(f"{server.base_url}/v1/rerank", "--http2", "-d", _BODY)
    assert status == 200
    assert_is(reference, answer)
    status, _, answer = curl(f"{server.base_url}/v1/rerank", "--http2", "-d", "{}")
    assert status == 400
    assert answer["error"]["param"] == "query"


def test_curl_may_send_a_compressed_file(server, reference, tmp_path):
    file = tmp_path / "body.json.gz"
    file.write_bytes(gzip.compress(_BODY.encode()))
    sent = ("-H", "Content-Encoding: gzip", "--data-binary", f"@{file}")
    status, _, answer = curl(f"{server.base_url}/v1/rerank", *sent)
    assert status == 200
    assert_is(reference, answer)
    file.write_bytes(file.read_bytes()[:-9])
    status, _, answer = curl(f"{server.base_url}/v1/rerank", *sent)
    assert status == 400
    assert "content-encoding gzip says: it is cut off" in answer["message"]
