"""Adapt CrossEncoder to frameworks that require a class of their own.

Each module imports its framework; `import crossrank` imports none of them. Tools that only call `predict` or `rank`
take a `crossrank.CrossEncoder` directly: sentence-transformers' evaluators, BEIR, PyTerrier's `pt.apply.doc_score` (see
`examples/`).
"""
