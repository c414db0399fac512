"""TensorRT: build plans, and compute with them.

gpus, runtimes    GPUs, and which of TensorRT and TensorRT for RTX builds plans for which of them
device, memory    the GPU of this machine, its memory and streams, through NVIDIA's cuda-bindings
spec, check       all parameters of a build; which plan can be loaded where
build             build a plan: network, parser, profiles
plan, lane        run a plan: contexts, buffers, CUDA graphs
cache, choose     the plan for the GPU at hand: the bundle's, a kept one, or one that is built
engine            engine tensorrt

`import tensorrt`, here as elsewhere, is NVIDIA's module.
"""
