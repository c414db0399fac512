"""Throughput and latency by one thing at a time."""
