"""Build TensorRT plans from a bundle's strongly typed fp16 graph.

gpus, device      supported GPUs, the TensorRT releases for each, and the GPU of this machine
runtimes          choose between TensorRT and TensorRT for RTX
operators         check that TensorRT's parser supports every operator and dtype of the graph
spec, describe    all parameters of a build: name, profiles, flags; printed, with the equivalent trtexec command
bindings          the only module that touches TensorRT's untyped Python API
build, parity     build a plan, compare it with ONNX Runtime, write it and record it in the manifest
check             check that a plan can be loaded here; imports nothing heavy, for serving and the repository writer
"""
