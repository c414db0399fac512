"""The gateway: serves cross-encoder rerankers over HTTP and gRPC, on top of the library `crossrank`.

http/, rpc/   transports: read a request, hand it to the service, write the answer
serving/      the service, and the models that it scores with: which are loaded, and when
accounts/     API keys, limits, prepaid credit, metering and prices
telemetry/    metrics, logs and traces
process/      worker processes, ports and TLS; knows nothing of models
commands/     the subcommands of `crossrank`, which `cli` lists; `settings` holds those of `crossrank serve`
calls.py      one request beside its text: who asks, how urgently, and where its time went

A request passes four files: transport (HTTP or gRPC) -> serving/service -> the library's scheduling -> an engine.
"""
