"""The laboratory: what this project measures of itself, in a checkout; not part of the wheel.

peers/      crossrank beside other libraries and servers: same weights, same requests
guard/      this tree beside an earlier commit
scaling/    throughput by cores, documents, tokens, requests under way and model shape
tiers/      realtime latency beside a flood of requests of the tier `batch`
graphs/     an exported graph before and after the passes
tokenizer/  the native tokenizer beside the tokenizers library
soak/       an hour of mixed load: memory, latency, right answers
install/    what installing it costs: packages, megabytes, import time
gpu/        a machine with an NVIDIA GPU: everything in one script, and all questions about TensorRT in another

`make bench-NAME BENCH_ARGS="..."` runs one of them.
"""
