"""Realtime latency beside a flood of the tier `batch`."""
