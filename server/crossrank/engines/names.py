"""List the names of engines and precisions, once for settings, commands and files."""

from __future__ import annotations

from typing import Literal, get_args

# `auto` is the first of `candidates` that can serve.
EngineName = Literal["auto", "native", "openvino", "onnxruntime", "cuda", "tensorrt", "triton"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Device = Literal["cpu", "gpu", "server"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[PrecisionName, ...] = get_args(PrecisionName)
# Where each computes: on this machine's CPU or GPU, or in a server that is reached over the network.
DEVICES: dict[EngineName, Device] = {
    "native": "cpu",
    "openvino": "cpu",
    "onnxruntime": "cpu",
    "cuda": "gpu",
    "tensorrt": "gpu",
    "triton": "server",
}
EMBEDDED_ENGINES: tuple[EngineName, ...] = tuple(name for name in ENGINES if DEVICES.get(name) != "server")
GPU_ENGINES: tuple[EngineName, ...] = tuple(name for name in ENGINES if DEVICES.get(name) == "gpu")
CPU_ENGINES: tuple[EngineName, ...] = tuple(name for name in ENGINES if DEVICES.get(name) == "cpu")
