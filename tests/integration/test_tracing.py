"""Traces: the real server sends its spans to a real OTLP receiver, below the span that its caller named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from crossrank.errors import SetupError
from crossrank_server.telemetry.tracing import tracing_from_environment
from tests.otlp_collector import Collector, running_collector
from tests.server_process import RunningServer, running_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = ["parse", "tokenize", "queue", "inference", "respond"]
BODY = {"query": "the merger", "documents": ["it is on friday", "it is not"]}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[RunningServer]:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with running_server("--log-format", "json", env=env) as process:
        yield process


def post(server: RunningServer, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/rerank", json=body, headers=headers)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def spans_of(collector: Collector, request_id: str, count: int) -> tuple[Any, list[Any]]:
    """Return a request's span and those below it, once that many are there."""
    for _ in range(50):
        found = [s for s in collector.spans if attributes(s).get("crossrank.request_id") == request_id]
        below = [s for s in collector.spans if found and s.parent_span_id == found[0].span_id]
        if found and len(below) == count:
            return found[0], below
        collector.wait_for(len(collector.spans) + 1)
    raise AssertionError(f"no span of {request_id} with {count} below it: {collector.spans}")


def test_a_request_continues_its_callers_trace_with_a_span_for_each_stage(server: RunningServer, collector: Collector):
    response = post(server, BODY, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=b", **{"x-request-id": "r-1"})
    span, stages = spans_of(collector, "r-1", len(STAGES))
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert span.trace_state == "a=b"
    assert span.name == "POST /v1/rerank"
    assert span.kind == span.SPAN_KIND_SERVER
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/rerank",
        "http.response.status_code": 200,
        "gen_ai.request.model": "crossrank-mini",
        "gen_ai.usage.input_tokens": response.json()["usage"]["total_tokens"],
        "crossrank.documents": 2,
        "crossrank.tier": "realtime",
    }
    assert expected.items() <= attributes(span).items()
    assert [stage.name for stage in sorted(stages, key=lambda stage: stage.start_time_unix_nano)] == STAGES
    assert {stage.trace_id.hex() for stage in stages} == {TRACE}
    end = span.start_time_unix_nano
    for stage in stages:
        assert end <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        end = stage.end_time_unix_nano
    assert end <= span.end_time_unix_nano
    assert collector.resource()["service.name"] == "crossrank"
    assert not any("merger" in str(export) or "friday" in str(export) for export in collector.exports)


def test_lines_of_the_log_name_the_trace(server: RunningServer):
    post(server, BODY, traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-request-id": "r-2"})
    assert server.access_line("r-2")["trace_id"] == TRACE


def test_a_refused_request_has_its_error_and_a_trace_of_its_own(server: RunningServer, collector: Collector):
    post(server, {"query": "q"}, **{"x-request-id": "r-3", "traceparent": "nonsense"})
    span, stages = spans_of(collector, "r-3", 1)
    assert span.parent_span_id == b""
    assert attributes(span)["error.type"] == "missing_field"
    assert span.status.code == span.status.STATUS_CODE_UNSET, "the caller's fault"
    assert [stage.name for stage in stages] == ["parse"]


def test_what_the_caller_does_not_sample_is_not_sent_and_probes_are_not(server: RunningServer, collector: Collector):
    post(server, BODY, traceparent=f"00-{TRACE}-{PARENT}-00", **{"x-request-id": "r-4"})
    httpx.get(f"{server.base_url}/health/ready", headers={"x-request-id": "r-5"})
    post(server, BODY, **{"x-request-id": "r-6"})
    spans_of(collector, "r-6", len(STAGES))
    ids = {attributes(span).get("crossrank.request_id") for span in collector.spans}
    assert not ids & {"r-4", "r-5"}


def test_spans_are_sent_before_the_server_ends():
    with running_collector() as own:
        env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{own.url}/v1/traces", "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
        with running_server(env={**env, "OTEL_SERVICE_NAME": "mine"}) as process:
            post(process, BODY)
            assert own.spans == []
            process.process.terminate()
            assert process.process.wait(30) == 0
        assert len(own.spans) == 1 + len(STAGES)
        assert own.resource()["service.name"] == "mine"


def test_a_collector_that_is_away_holds_nothing_up(free_port):
    with running_server(env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}"}) as process:
        assert post(process, BODY).status_code == 200
        process.process.terminate()
        assert process.process.wait(20) == 0


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SetupError, match=r"is 'grpc'; only http/protobuf is sent .*4318"):
        tracing_from_environment()


@pytest.mark.parametrize("off", [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_without_an_endpoint_or_switched_off_nothing_of_it_is_imported(off: dict[str, str]):
    code = (
        "import sys; from crossrank_server.telemetry.tracing import tracing_from_environment as t; import "
        "crossrank_server.http.app; assert t() is None; sys.exit('opentelemetry.sdk' in sys.modules)"
    )
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"} if off else {}
    env = {"PYTHONPATH": ":".join(sys.path), **endpoint, **off}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
