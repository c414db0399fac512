"""Adapters for frameworks that insist on a class of their own: each module here imports its framework, crossrank none.

Tools that only call `predict` or `rank` take a `crossrank.CrossEncoder` as it is: sentence-transformers' evaluators,
BEIR, PyTerrier's `pt.apply.doc_score` (see `examples/`).
"""
