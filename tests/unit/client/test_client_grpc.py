"""The client over gRPC, against a real gRPC server on loopback that answers as scripted: what is sent, errors, retries."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time

import grpc
import pytest
import trustme

import crossrank_client as cc
from crossrank.errors import BackendUnavailable, Overloaded, PaymentRequired, RateLimited
from crossrank_client import AsyncClient, Client
from crossrank_client.operations import Rerank
from tests.scripted_rpc import RpcReply, ScriptedRpcServer
from tests.unit.server.test_errors import answered

RANKING = RpcReply()
BUSY = RpcReply(Overloaded("the queue is full", retry_after_s=0.01))
both = pytest.mark.parametrize("mode", ["sync", "async"])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("crossrank_client.retries._BACKOFF_FACTOR_S", 0.005)
    for name in ("CROSSRANK_BASE_URL", "CROSSRANK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def call(mode: str, url: str, documents=("d",), options=None, **client_options):
    """Rerank once, with the client of the mode."""

    async def awaited():
        async with AsyncClient(url, **client_options) as client:
            return await client.rerank("q", documents, **(options or {}))

    if mode == "async":
        return asyncio.run(awaited())
    with Client(url, **client_options) as client:
        return client.rerank("q", documents, **(options or {}))


@both
def test_fields_and_metadata_are_sent(mode):
    options = {
        "top_n": 2, "return_documents": True, "raw_scores": True, "model": "other", "truncate": False,
        "truncation_direction": "left", "max_tokens_per_doc": 100, "max_chunks_per_doc": 3, "tier": "batch", "wait_s": 20.5,
    }  # fmt: skip
    with ScriptedRpcServer([RANKING]) as server:
        response = call(mode, server.url, ["a", "b"], options, api_key="k-1")
    (request,), (metadata,) = server.requests, server.metadata
    fields = {descriptor.name: value for descriptor, value in request.ListFields()}
    assert fields == {
        "query": "q", "documents": ["a", "b"], "top_n": 2, "return_documents": True, "raw_scores": True, "model": "other",
        "truncate": False, "truncation_direction": 2, "max_tokens_per_doc": 100, "max_chunks_per_doc": 3,
    }  # fmt: skip
    assert (metadata["authorization"], metadata["x-tier"], metadata["prefer"]) == ("Bearer k-1", "batch", "wait=21")
    assert response.results == (cc.RerankResult(0, 0.0), cc.RerankResult(1, -1.0))


@both
@pytest.mark.parametrize(("side", "number"), [(None, 0), ("right", 1), ("left", 2)])
def test_the_side_that_is_cut_is_sent_where_it_is_said(mode, side, number):
    with ScriptedRpcServer([RANKING]) as server:
        call(mode, server.url, ["a", "b"], {"truncation_direction": side})
    assert server.requests[0].truncation_direction == number
    body = json.loads(Rerank("q", ["a"], truncation_direction=side).http_body())
    assert body.get("truncation_direction") == side


@both
@pytest.mark.parametrize("kind", list(answered()), ids=lambda error: error.__name__)
def test_each_error_of_the_server_raises_its_own(mode, kind):
    reply = RpcReply(kind("m is 3", param="query", retry_after_s=2.5))
    with ScriptedRpcServer([reply]) as server, pytest.raises(cc.APIError) as raised:
        call(mode, server.url, max_retries=0)
    error = raised.value
    classes = {400: cc.BadRequest, 401: cc.Unauthorized, 402: cc.PaymentRequired, 403: cc.Forbidden, 404: cc.NotFound}
    classes |= {413: cc.TooLarge, 429: cc.RateLimited, 503: cc.Unavailable, 504: cc.Timeout}
    other = cc.ServerError if kind.http_status >= 500 else cc.APIError
    assert type(error) is classes.get(kind.http_status, other)
    assert (error.status, error.message, error.type) == (kind.http_status, "m is 3", kind.error_type)
    assert (error.code, error.request_id) == (kind.default_code, "r-1")
    if kind.http_status != 500:
        assert (error.param, error.retry_after_s) == ("query", 2.5)


@both
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAUTHENTICATED", cc.Unauthorized),
        ("UNIMPLEMENTED", cc.NotFound),
        ("RESOURCE_EXHAUSTED", cc.RateLimited),
        ("INTERNAL", cc.ServerError),
        ("UNAVAILABLE", cc.ConnectionFailed),
        ("CANCELLED", cc.ConnectionFailed),
    ],
)
def test_a_status_without_details_such_as_a_proxys_raises_the_nearest_error(mode, code, kind):
    reply = RpcReply(code=grpc.StatusCode[code], details="upstream said no")
    with ScriptedRpcServer([reply]) as server, pytest.raises(kind, match="upstream said no") as raised:
        call(mode, server.url, max_retries=0)
    assert type(raised.value) is kind


@both
@pytest.mark.parametrize("error", [Overloaded, RateLimited, BackendUnavailable])
def test_a_busy_server_is_asked_again(mode, error):
    busy = RpcReply(error("busy", retry_after_s=0.01))
    with ScriptedRpcServer([busy, busy, RANKING]) as server:
        assert call(mode, server.url).model == "m"
    assert len(server.requests) == 3
    assert len(set(server.peers)) == 1  # One connection.


@both
def test_other_errors_are_raised_at_once_though_they_share_the_status_of_a_busy_server(mode):
    spent = RpcReply(PaymentRequired("no credit"))
    with ScriptedRpcServer([spent, RANKING]) as server, pytest.raises(cc.PaymentRequired):
        call(mode, server.url)
    assert len(server.requests) == 1


@both
def test_the_last_error_is_raised_when_the_retries_are_used_up(mode):
    with ScriptedRpcServer([BUSY]) as server, pytest.raises(cc.RateLimited, match="the queue is full"):
        call(mode, server.url, max_retries=2)
    assert len(server.requests) == 3


@both
def test_the_time_a_server_asks_for_is_waited_for_or_the_error_raised(mode):
    with ScriptedRpcServer([RpcReply(BackendUnavailable("warming", retry_after_s=1)), RANKING]) as server:
        call(mode, server.url)
    assert server.at_s[1] - server.at_s[0] >= 0.99
    later = RpcReply(BackendUnavailable("warming", retry_after_s=60))
    with ScriptedRpcServer([later, RANKING]) as server, pytest.raises(cc.Unavailable) as raised:
        call(mode, server.url, max_retry_wait_s=5)
    assert (len(server.requests), raised.value.retry_after_s) == (1, 60.0)


@both
def test_a_slow_answer_times_out_and_is_not_asked_for_twice(mode):
    with ScriptedRpcServer([RpcReply(delay_s=5)]) as server, pytest.raises(cc.TimedOut, match=r"timeout 0.5 s\)"):
        call(mode, server.url, timeout=0.5)
    assert len(server.requests) == 1


@both
def test_the_wait_for_a_sleeping_model_extends_the_timeout(mode):
    with ScriptedRpcServer([RpcReply(delay_s=0.6)]) as server:
        assert call(mode, server.url, timeout=0.3, options={"wait_s": 20}).model == "m"


@both
def test_no_server_is_a_failed_connection_and_one_that_comes_up_meanwhile_is_reached(mode, free_port, monkeypatch):
    port = free_port()
    with pytest.raises(cc.ConnectionFailed, match=f"no answer from grpc://127.0.0.1:{port}: .*is the server running"):
        call(mode, f"grpc://127.0.0.1:{port}", max_retries=1)
    monkeypatch.setattr("crossrank_client.retries._BACKOFF_FACTOR_S", 0.25)
    server = ScriptedRpcServer([RANKING], port=port)
    starting = threading.Timer(0.5, server.__enter__)
    starting.start()
    try:
        assert call(mode, f"grpc://127.0.0.1:{port}", max_retries=8).model == "m"
    finally:
        starting.join()
        server.__exit__()


def test_a_cancelled_task_cancels_its_call():
    async def cancelled() -> float:
        async with AsyncClient(server.url) as client:
            task = asyncio.ensure_future(client.rerank("q", ["d"]))
            while not server.requests:  # noqa: ASYNC110 - the server is in other threads
                await asyncio.sleep(0.01)
            task.cancel()
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - start

    with ScriptedRpcServer([RpcReply(delay_s=30)]) as server:
        assert asyncio.run(cancelled()) < 30


@both
def test_tls_trusts_the_given_authority_and_presents_the_given_certificate(mode, tmp_path):
    authority, other = trustme.CA(), trustme.CA()
    identity, own = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@example.org")
    files = {name: str(tmp_path / name) for name in ("ca", "other", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    other.cert_pem.write_to_path(files["other"])
    own.cert_chain_pems[0].write_to_path(files["cert"])
    own.private_key_pem.write_to_path(files["key"])
    chain = b"".join(pem.bytes() for pem in identity.cert_chain_pems)
    credentials = grpc.ssl_server_credentials(
        [(identity.private_key_pem.bytes(), chain)], authority.cert_pem.bytes(), require_client_auth=True
    )
    pair = (files["cert"], files["key"])
    with ScriptedRpcServer([RANKING], credentials=credentials) as server:
        url = server.url.replace("grpc://", "grpcs://")
        assert call(mode, url, ca_file=files["ca"], client_cert=pair).model == "m"
        for options in ({"ca_file": files["other"], "client_cert": pair}, {"ca_file": files["ca"]}):
            with pytest.raises(cc.ConnectionFailed):
                call(mode, url, max_retries=0, **options)


async def test_streams_that_a_server_refuses_are_tried_again():
    with ScriptedRpcServer([RANKING], max_streams=4) as server:
        async with AsyncClient(server.url, max_retries=20) as client:
            answers = await asyncio.gather(*(client.rerank("q", ["a"]) for _ in range(40)))
    assert {answer.model for answer in answers} == {"m"}
    assert len(server.requests) == 40


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("grpc://host", "give a host and a port, like grpc://host:9000"),
        ("grpcs://host:1/path", "give a host and a port, like grpcs://"),
        ("grpc://", "start it with http://, https://, grpc:// or grpcs://"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(kind, url, says):
    with pytest.raises(ValueError, match=says):
        kind(url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_certificates_without_tls_are_refused(kind):
    with pytest.raises(ValueError, match="has no TLS"):
        kind("grpc://127.0.0.1:1", ca_file="ca.pem")


def test_without_grpc_installed_its_addresses_say_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['grpc'] = None  # As good as not installed.\n"
        "from crossrank_client import Client\n"
        "Client('http://127.0.0.1:1').close()\n"
        "Client('grpc://127.0.0.1:1')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        run.stderr.splitlines()[-1] == "ImportError: grpc:// addresses need grpc: pip install 'crossrank-client[grpc]'"
    )
