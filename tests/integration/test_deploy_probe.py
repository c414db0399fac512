"""The gateway image's HEALTHCHECK, and what Prometheus of compose sends, against a real gateway."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import trustme

from tests.deploy_files import read_stages
from tests.server_process import CROSSRANK, running_server

PROBE = json.loads(read_stages()["gateway"].values("HEALTHCHECK")[0].partition("CMD ")[2])


def probe(port: int, **environment: str) -> int:
    """Return the exit status of the HEALTHCHECK, as Docker would run it."""
    done = subprocess.run(
        [sys.executable, *PROBE[1:]],
        env={"CROSSRANK_PORT": str(port), **environment},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode


def test_a_gateway_that_answers_is_healthy_and_none_is_not():
    assert PROBE[0] == "python"
    with running_server() as server:
        assert probe(server.port) == 0
    assert probe(server.port) == 1


def test_a_gateway_under_tls_is_healthy_whatever_name_its_certificate_has(tmp_path: Path):
    authority = trustme.CA()
    leaf = authority.issue_cert("reranker.example.org")
    cert, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.check_hostname = False
    environment = {"CROSSRANK_TLS_CERT": cert, "CROSSRANK_TLS_KEY": key}
    with running_server(env=environment, tls=context) as server:
        assert server.base_url.startswith("https://")
        assert probe(server.port, **environment) == 0
        assert probe(server.port) == 1, "plain HTTP gets no answer"


def metrics_status(base_url: str, key: str) -> int:
    return httpx.get(f"{base_url}/metrics", headers={"authorization": f"Bearer {key}"}).status_code


def test_prometheus_needs_a_key_only_where_keys_are_on(tmp_path: Path):
    with running_server() as server:
        assert metrics_status(server.base_url, "none") == 200
    store = f"sqlite:///{tmp_path / 'keys.db'}"
    create = [CROSSRANK, "keys", "create", "--store", store, "--name", "prometheus", "--scopes"]
    metrics, rerank = (
        subprocess.run([*create, scope], capture_output=True, text=True, check=True).stdout.strip()
        for scope in ("metrics", "rerank")
    )
    with running_server("--store", store) as server:
        assert metrics_status(server.base_url, metrics) == 200
        assert metrics_status(server.base_url, rerank) == 403
        assert metrics_status(server.base_url, "none") == 401
