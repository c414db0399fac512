"""Triton: model repositories from bundles, and the real tritonserver on this machine.

spec              every decision about a repository: target, buckets, batch, queue, instances
config            those decisions as ModelConfig protobufs, so that no wrong field can be written
write, graph      the repository on disk; ONNX graphs with the int32 inputs that Triton's clients send
models            the model.py files that are copied into a repository: engine (CPU) and rerank (text)
home, server      the tritonserver of the nvidia-pytriton wheel: found, given this Python, started
"""
