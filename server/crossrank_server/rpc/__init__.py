"""gRPC: reads messages, hands them to the service, writes answers. Imported only where `--grpc-port` asks for it.

server.py     the port, health, reflection, an orderly end
gateway.py    what all methods share: who calls, messages within their limits, errors
errors.py     an error as a status with google.rpc's details
reranker.py   crossrank.v1; stream.py pipelines the requests of one stream
tei.py        tei.v1, for clients of text-embeddings-inference
"""
