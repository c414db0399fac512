"""What is told of requests and batches: metrics, log lines, traces. Never a document's or a query's text.

base.py        the seam: `Observer`, and the facts that it is given
metrics.py     counts for Prometheus; state.py reads what is true at the moment it asks
access_log.py  a line for each request; logs.py formats every line of the process
tracing.py     whether an endpoint of OpenTelemetry is configured; spans.py sends it a span for each request
"""
