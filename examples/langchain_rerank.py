"""Rerank documents in LangChain. Needs: pip install crossrank langchain-classic."""

from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document

from crossrank import CrossEncoder
from crossrank.integrations.langchain import CrossrankCrossEncoder

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

reranker = CrossEncoderReranker(model=CrossrankCrossEncoder(CrossEncoder("builtin")), top_n=2)
# In a chain: ContextualCompressionRetriever(base_compressor=reranker, base_retriever=...)
for document in reranker.compress_documents([Document(page_content=text) for text in texts], query):
    print(document.page_content)
