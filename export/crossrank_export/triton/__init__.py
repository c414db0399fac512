"""Write Triton model repositories from bundles, and run the real tritonserver on this machine.

spec              all parameters of a repository: target, buckets, batch, queue, instances
config            those parameters as ModelConfig protobufs, which hold no wrong field
write, graph      the repository on disk; ONNX graphs with the int32 inputs that Triton's clients send
models            the model.py files that are copied into a repository: engine (CPU) and rerank (text)
home, server      find the tritonserver of the nvidia-pytriton wheel, prepare this Python for it, start it
"""
