"""The union of the rerank schemas in use: one core, of which every dialect takes the fields it has.

fields.py    single fields: what they may hold, and what is said of anything else
bodies.py    requests to rank documents; pairs.py those to score pairs
answers.py   answers, and the errors that every route documents

Common core (Jina, vLLM, Cohere, infinity): `model, query, documents, top_n` in,
`results[{index, relevance_score}]` sorted by falling score out.
"""
