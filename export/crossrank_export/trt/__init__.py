"""TensorRT plans from a bundle's strongly typed fp16 graph.

gpus, device      which GPUs there are, what each needs, and which one this machine has
operators         is every operator and dtype of the graph one that TensorRT's parser publishes as supported?
spec              every decision of a build: name, profiles, flags, the equivalent trtexec command
bindings          the only module that touches TensorRT's untyped Python API (10.4 and 11.4)
build, parity     build, compare with ONNX Runtime, write the plan and record it in the manifest
check             may this plan be loaded here? Imports nothing heavy: for serving and the repository writer
"""
