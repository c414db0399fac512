"""gRPC: read messages, hand them to the service, write answers. Imported only where `--grpc-port` asks for it.

server.py     the port, health, reflection, graceful shutdown
handler.py    the steps that all methods share: key, limits of messages, errors, trailing metadata
errors.py     an error as a status with google.rpc's details
reranker.py   crossrank.v1; stream.py pipelines the requests of one stream
tei.py        tei.v1, for clients of text-embeddings-inference
"""
