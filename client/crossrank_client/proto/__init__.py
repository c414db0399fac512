"""The gRPC interfaces, and the Python code that `make proto` generates from them.

crossrank_v1.proto   the interface of this server
tei_v1.proto         text-embeddings-inference's, as far as reranking goes; only the server uses it
"""
