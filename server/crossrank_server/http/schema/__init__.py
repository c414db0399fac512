"""The union of the rerank schemas in use: one core, with the fields of every dialect.

fields.py    single fields: their values, and the error for any other value
bodies.py    requests to rank documents; pairs.py those to score pairs
answers.py   answers, and the errors that every route documents

Common core (Jina, vLLM, Cohere, infinity): `model, query, documents, top_n` in,
`results[{index, relevance_score}]` sorted by falling score out.
"""
