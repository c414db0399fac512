"""curl, as a README shows it: with a key, without one, and with the header left empty by an unset variable."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.clients.ways import DOCUMENTS, MODEL, QUERY

HEADERS = {
    "none": [],
    "empty": ["-H", "Authorization;"],
    "no token": ["-H", "Authorization: Bearer "],
    "any token": ["-H", "Authorization: Bearer any"],
    "no scheme": ["-H", "Authorization: any"],
}


def curl(*arguments: str) -> tuple[int, dict[str, str], object]:
    """Return the status, the headers and the JSON of an answer."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine; Debian's package curl has it")
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--dump-header", "-", *arguments]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    head, _, body = output.replace("\r\n", "\n").partition("\n\n")
    status, *lines = head.split("\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize("authorization", HEADERS.values(), ids=HEADERS.keys())
def test_without_keys_any_authorization_is_served(server, reference, authorization):
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS, "model": MODEL})
    status, _, answer = curl(
        f"{server.base_url}/v1/rerank", "-H", "Content-Type: application/json", *authorization, "-d", body
    )
    assert status == 200
    assert [result["index"] for result in answer["results"]] == reference.order


def test_curls_own_content_type_will_do(server, reference):
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    status, headers, answer = curl(f"{server.base_url}/rerank", "-d", body)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert [result["index"] for result in answer["results"]] == reference.order


def test_teis_readme_example_gets_a_bare_list(server, reference):
    body = json.dumps({"query": QUERY, "texts": DOCUMENTS})
    status, _, answer = curl(
        f"{server.base_url}/rerank", "-X", "POST", "-H", "Content-Type: application/json", "-d", body
    )
    assert status == 200
    assert [(rank["index"], rank["score"]) for rank in answer] == [
        (index, pytest.approx(score, rel=1e-6)) for index, score in zip(reference.order, reference.scores, strict=True)
    ]
