"""Build TensorRT plans from a bundle's strongly typed fp16 graph, for other machines as well as this one.

machine           check that this machine can build for a GPU, and name the container that can
operators         check that TensorRT's parser supports every operator and dtype of the graph
describe          print all parameters of a build, with the equivalent trtexec command
build, parity     build a plan, compare it with ONNX Runtime, write it and record it in the manifest

GPUs, runtimes, parameters and the builder itself are the library's: crossrank.engines.tensorrt.
"""
