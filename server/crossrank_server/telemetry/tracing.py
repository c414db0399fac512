"""Set up OpenTelemetry where its standard variables name an endpoint; otherwise import nothing of it.

The variables (OTEL_EXPORTER_OTLP_ENDPOINT, ...) also set the sampler, the service's name and headers of the export.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import os

from crossrank.errors import SetupError
from crossrank_server.telemetry.base import Observer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracing_from_environment() -> Observer | None:
    """Return the observer that traces requests; None without an endpoint, or where tracing is switched off.

    Raises:
        SetupError: A package is missing, or the protocol asked for is not that of HTTP.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return None
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name, "").strip()), None)
    if endpoint is None:
        return None
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((os.environ[name] for name in names if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise SetupError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol[:40]!r}; only http/protobuf is sent "
            "(to port 4318 of a collector)"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from crossrank_server.telemetry.spans import Tracing
    except ModuleNotFoundError as error:
        raise SetupError(f"{endpoint} is set, which needs {error.name}: pip install 'crossrank[otel]'") from None
    return Tracing(OTLPSpanExporter())
