"""Rerank nodes in LlamaIndex. Needs: pip install crossrank llama-index-core."""

from llama_index.core.schema import NodeWithScore, TextNode

from crossrank import CrossEncoder
from crossrank.integrations.llama_index import CrossrankRerank

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

rerank = CrossrankRerank(encoder=CrossEncoder("builtin"), top_n=2)
# With an index: index.as_query_engine(node_postprocessors=[rerank])
for node in rerank.postprocess_nodes([NodeWithScore(node=TextNode(text=text)) for text in texts], query_str=query):
    print(f"{node.score:.4f}", node.text)
