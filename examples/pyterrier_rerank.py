"""Rerank in a PyTerrier pipeline. Needs: pip install crossrank pyterrier."""

import pandas as pd
import pyterrier as pt

from crossrank import CrossEncoder

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

encoder = CrossEncoder("builtin")
rerank = pt.apply.doc_score(lambda rows: encoder.predict(rows[["query", "text"]].values.tolist()), batch_size=1024)

# After a retriever: bm25 % 100 >> pt.text.get_text(index) >> rerank
found = pd.DataFrame({"qid": "1", "query": query, "docno": [str(i) for i in range(len(texts))], "text": texts})
for row in rerank(found).sort_values("rank").itertuples():
    print(f"{row.score:.4f}", row.text)
