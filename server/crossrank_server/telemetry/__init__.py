"""Metrics, log lines and traces of requests and batches. They never hold the text of a query or a document.

base.py        the seam: `Observer`, and the facts that it receives
metrics.py     counts for Prometheus; state.py reads what is true at the moment it asks
access_log.py  a line for each request; logs.py formats every line of the process
tracing.py     whether an endpoint of OpenTelemetry is configured; spans.py sends it a span for each request
"""
