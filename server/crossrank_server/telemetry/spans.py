"""Record OpenTelemetry spans: one for each request, below its caller's span, and one for each stage below it."""

from __future__ import annotations

import threading
import time
from importlib.metadata import version
from typing import Any

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from crossrank_server.calls import STAGES, Call
from crossrank_server.telemetry.base import OK, Exchange, ScoredBatch

_FLUSH_S = 3.0


class Tracing:
    """Record spans; an `Observer`.

    Args:
        exporter: Receives finished spans, in batches, from a thread of its own.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        resource = Resource.create({SERVICE_VERSION: version("crossrank")})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            # Neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES gave one.
            resource = resource.merge(Resource({SERVICE_NAME: "crossrank"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("crossrank")

    def finished(self, exchange: Exchange) -> None:
        """Record the span of a request, below the one that its headers name, and the spans of its stages.

        They are built from the measured times when the request has ended; samplers see the parent and the attributes.
        """
        if exchange.is_probe:
            return
        # The zero of perf_counter() is arbitrary: it lies this many nanoseconds after 1970.
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        start_ns = epoch_ns + int(exchange.started * 1e9)
        name = exchange.route if exchange.protocol == "grpc" else f"{exchange.method} {exchange.route}"
        span = self._tracer.start_span(
            name,
            extract(exchange.headers),
            SpanKind.SERVER,
            attributes=_attributes(exchange),
            start_time=start_ns,
        )
        exchange.trace_id = f"{span.get_span_context().trace_id:032x}"
        if span.is_recording():
            if exchange.failed:
                span.set_status(Status(StatusCode.ERROR))
            if exchange.call is not None:
                self._add_stages(span, exchange.call, epoch_ns)
        span.end(start_ns + int(exchange.duration_s * 1e9))

    def _add_stages(self, span: Span, call: Call, epoch_ns: int) -> None:
        parent = set_span_in_context(span)
        end_s = call.started
        for stage in STAGES:
            if stage not in call.stages_s:
                continue
            # Stages without a start time of their own (queue, inference) follow the one before.
            start_s = call.stage_starts.get(stage, end_s)
            end_s = start_s + call.stages_s[stage]
            child = self._tracer.start_span(stage, parent, start_time=epoch_ns + int(start_s * 1e9))
            child.end(epoch_ns + int(end_s * 1e9))

    def batch_scored(self, batch: ScoredBatch) -> None:
        """Trace nothing: a batch serves several requests."""

    def close(self) -> None:
        """Send the spans that wait; give up after a few seconds if the collector does not answer."""
        # The exporter's own limit is 30 s.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def _attributes(exchange: Exchange) -> dict[str, Any]:
    """Return the attributes of a request's span, named by OpenTelemetry's semantic conventions where they exist.

    Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/, .../rpc/grpc/, .../gen-ai/gen-ai-spans/
    """
    if exchange.protocol == "http":
        attributes: dict[str, Any] = {
            "http.request.method": exchange.method,
            "http.route": exchange.route,
            "http.response.status_code": int(exchange.status),
        }
    else:
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": exchange.route.lstrip("/"),
            "rpc.response.status_code": exchange.status,
        }
    attributes["crossrank.request_id"] = exchange.request_id
    if exchange.code != OK:
        attributes["error.type"] = exchange.code
    call = exchange.call
    if call is not None and call.model:
        attributes |= {
            "gen_ai.operation.name": "rerank",
            "gen_ai.request.model": call.model,
            "gen_ai.usage.input_tokens": call.tokens,
            "crossrank.tier": call.tier,
            "crossrank.documents": call.documents,
            "crossrank.truncated_documents": call.truncated_documents,
        }
    return attributes
