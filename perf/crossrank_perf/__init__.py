"""Measurements: load over HTTP, ranking quality."""
