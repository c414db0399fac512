"""Behaviour for the stand-in of TensorRT 10.4 and 11.4 (fake_tensorrt.py), and a GPU, which no machine here has.

A "plan" is a JSON header (everything the builder was told), a zero byte, and the ONNX graph; running it runs the
graph in ONNX Runtime, on "device" memory that is the host's. `FakeDriver` stands for libcuda and libcudart.
"""
# ruff: noqa: N802, N815  (CUDA's own names)

from __future__ import annotations

import ctypes
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from tests.fake_tensorrt import Behaviour, fake_tensorrt

_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}


class FakeDriver:
    """The calls of libcuda and libcudart that this project and Polygraphy make."""

    def __init__(self, name: str = "Tesla V100-SXM2-16GB", sm: int = 70) -> None:
        self.name, self.sm, self.memory, self.copied_bytes = name, sm, {}, 0

    def __call__(self, library: str, *args, **kwargs):
        return self

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, handle, ordinal):
        return 0

    def cuDeviceGetName(self, buffer, size, handle):
        buffer.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, out, attribute, handle):
        out._obj.value = {75: self.sm // 10, 76: self.sm % 10}[attribute]
        return 0

    def cudaStreamCreate(self, out):
        out._obj.value = 1
        return 0

    def cudaStreamSynchronize(self, stream):
        return 0

    cudaStreamDestroy = cudaStreamSynchronize

    def cudaMalloc(self, out, nbytes):
        block = ctypes.create_string_buffer(max(1, nbytes.value))
        out._obj.value = ctypes.addressof(block)
        self.memory[out._obj.value] = block
        return 0

    def cudaFree(self, pointer):
        if pointer.value is not None:
            del self.memory[pointer.value]
        return 0

    def cudaMemcpy(self, target, source, nbytes, kind):
        ctypes.memmove(target, source, nbytes.value)
        self.copied_bytes += nbytes.value
        return 0

    def cudaMemcpyAsync(self, target, source, nbytes, kind, stream):
        return self.cudaMemcpy(target, source, nbytes, kind)


def install(
    monkeypatch, version: str, driver: FakeDriver, *, skew: float = 0.0, overrides: Behaviour | None = None
) -> ModuleType:
    """Make this process look like a machine with TensorRT and a GPU.

    Args:
        monkeypatch: Undoes it.
        version: Of TensorRT.
        driver: The GPU.
        skew: Added to every logit that a plan gives.
        overrides: Behaviour in place of what this module supplies, to make a step fail.
    """
    behaviour: Behaviour = {}
    trt = fake_tensorrt(version, behaviour)
    _add_building(trt, behaviour)
    _add_running(trt, behaviour, skew)
    behaviour.update(overrides or {})
    # Polygraphy keeps the module it has seen first.
    for name in [name for name in sys.modules if name.split(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(ctypes, "CDLL", driver)
    return trt


def plan_header(plan: bytes) -> dict:
    return json.loads(plan.partition(b"\0")[0])


def _new(cls: type, **values):
    """Make an object of a class that only TensorRT itself can make."""
    made = cls.__new__(cls)
    made.__dict__.update(values)
    return made


def _add_building(trt: ModuleType, behaviour: Behaviour) -> None:
    def parse(parser, path):
        model = onnx.load(path)
        network = parser._network
        network._path = path
        for value in model.graph.input:
            shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
            dtype = getattr(trt.DataType, _TYPES[value.type.tensor_type.elem_type])
            network._inputs.append(_new(trt.ITensor, name=value.name, shape=shape, dtype=dtype, is_shape_tensor=False))
        halves = any(init.data_type == onnx.TensorProto.FLOAT16 for init in model.graph.initializer)
        strong = network._flags >> int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        return not halves or bool(strong)

    def build(builder, network, config):
        assert config._profiles, "a network with dynamic shapes needs a profile"
        names = {tensor.name for tensor in network._inputs}
        for profile in config._profiles:
            assert set(profile._shapes) == names, "every input needs its shapes in every profile"
        header = {
            "tensorrt": trt.__version__,
            "network_flags": network._flags,
            "level": config.builder_optimization_level,
            "pools": config._pools,
            "cleared": config._cleared,
            "timings": config._cache._content.decode(),
            "profiles": [profile._shapes for profile in config._profiles],
        }
        with open(network._path, "rb") as graph:
            return host_memory(json.dumps(header).encode() + b"\0" + graph.read())

    def host_memory(content: bytes):
        trt.IHostMemory.__bytes__ = lambda self: self._content
        return _new(trt.IHostMemory, _content=content)

    def set_shape(profile, name, *points):
        low, best, high = map(tuple, points)
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)), "MIN <= OPT <= MAX"
        profile._shapes[name] = [low, best, high]

    def set_cache(config, cache, ignore_mismatch):
        config._cache = cache
        return cache._content in (b"", f"timings of {trt.__version__}".encode())

    def get_cache(config):
        config._cache._content = f"timings of {trt.__version__}".encode()
        return config._cache

    def bind_parser(parser, network, logger):
        parser._network = network

    behaviour.update(
        {
            "Builder.create_network": lambda b, flags=0: _new(trt.INetworkDefinition, _flags=flags, _inputs=[]),
            "Builder.create_builder_config": lambda b: _new(trt.IBuilderConfig, _profiles=[], _pools={}, _cleared=[]),
            "Builder.create_optimization_profile": lambda b: _new(trt.IOptimizationProfile, _shapes={}),
            "Builder.build_serialized_network": build,
            "OnnxParser.__init__": bind_parser,
            "OnnxParser.parse_from_file": parse,
            "OnnxParser.num_errors": lambda p: 1,
            "OnnxParser.get_error": lambda p, index: _new(trt.ParserError),
            "ParserError.node_operator": lambda e: "Gelu",
            "ParserError.node_name": lambda e: "node_7",
            "ParserError.desc": lambda e: "no importer",
            "INetworkDefinition.num_inputs": lambda n: len(n._inputs),
            "INetworkDefinition.get_input": lambda n, index: n._inputs[index],
            "IOptimizationProfile.set_shape": set_shape,
            "IBuilderConfig.add_optimization_profile": lambda c, p: c._profiles.append(p) or len(c._profiles) - 1,
            "IBuilderConfig.set_memory_pool_limit": lambda c, pool, size: c._pools.update({pool.name: size}),
            "IBuilderConfig.clear_flag": lambda c, flag: c._cleared.append(flag.name),
            "IBuilderConfig.create_timing_cache": lambda c, content: _new(trt.ITimingCache, _content=content),
            "IBuilderConfig.set_timing_cache": set_cache,
            "IBuilderConfig.get_timing_cache": get_cache,
            "ITimingCache.serialize": lambda cache: host_memory(cache._content),
        }
    )


def _add_running(trt: ModuleType, behaviour: Behaviour, skew: float) -> None:
    def load(runtime, plan):
        header, graph = plan_header(plan), plan.partition(b"\0")[2]
        if header["tensorrt"] != trt.__version__:
            return None  # and an error on the log, as the real one
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        model = onnx.load_from_string(graph)
        types = {v.name: _TYPES[v.type.tensor_type.elem_type] for v in (*model.graph.input, *model.graph.output)}
        outputs = {value.name for value in model.graph.output}
        state = SimpleNamespace(header=header, session=session, types=types, outputs=outputs)
        return _new(trt.ICudaEngine, _state=state)

    def mode(engine, name):
        return trt.TensorIOMode.OUTPUT if name in engine._state.outputs else trt.TensorIOMode.INPUT

    def context(engine):
        return _new(trt.IExecutionContext, _engine=engine, _profile=0, _shapes={}, _addresses={}, _allocators={})

    def set_profile(ctx, index, stream):
        ctx._profile, ctx._shapes = index, {}
        return 0 <= index < len(ctx._engine._state.header["profiles"])

    def set_input_shape(ctx, name, shape):
        low, _, high = ctx._engine._state.header["profiles"][ctx._profile][name]
        ctx._shapes[name] = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def execute(ctx, stream):
        state = ctx._engine._state
        feed = {}
        for name, shape in ctx._shapes.items():
            dtype = np.dtype(_NUMPY[state.types[name]])
            raw = ctypes.string_at(ctx._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feed[name] = np.frombuffer(raw, dtype).reshape(shape)
        for name, value in zip(state.outputs, state.session.run(list(state.outputs), feed), strict=True):
            value = np.ascontiguousarray(value + np.asarray(skew, value.dtype))
            allocator = ctx._allocators[name]
            address = allocator.reallocate_output_async(name, 0, value.nbytes, 1, stream)
            ctypes.memmove(address, value.ctypes.data, value.nbytes)
            allocator.notify_shape(name, value.shape)
        return True

    behaviour.update(
        {
            "Runtime.deserialize_cuda_engine": load,
            "ICudaEngine.num_optimization_profiles": lambda e: len(e._state.header["profiles"]),
            "ICudaEngine.num_io_tensors": lambda e: len(e._state.types),
            "ICudaEngine.get_tensor_name": lambda e, index: list(e._state.types)[index],
            "ICudaEngine.get_tensor_mode": mode,
            "ICudaEngine.get_tensor_shape": lambda e, name: (-1, 1) if name in e._state.outputs else (-1, -1),
            "ICudaEngine.get_tensor_dtype": lambda e, name: getattr(trt.DataType, e._state.types[name]),
            "ICudaEngine.get_tensor_format": lambda e, *_: trt.TensorFormat.LINEAR,
            "ICudaEngine.is_shape_inference_io": lambda e, name: False,
            "ICudaEngine.get_aliased_input_tensor": lambda e, name: None,
            "ICudaEngine.create_execution_context": context,
            "IExecutionContext.active_optimization_profile": lambda c: c._profile,
            "IExecutionContext.set_all_tensors_debug_state": lambda c, flag: True,
            "IExecutionContext.set_debug_listener": lambda c, listener: True,
            "IExecutionContext.set_optimization_profile_async": set_profile,
            "IExecutionContext.get_tensor_shape": lambda c, name: c._shapes.get(name, (-1, -1)),
            "IExecutionContext.set_input_shape": set_input_shape,
            "IExecutionContext.get_tensor_address": lambda c, name: c._addresses.get(name, 0),
            "IExecutionContext.set_tensor_address": lambda c, name, ptr: c._addresses.update({name: ptr}) is None,
            "IExecutionContext.set_output_allocator": lambda c, name, a: c._allocators.update({name: a}) is None,
            "IExecutionContext.execute_async_v3": execute,
        }
    )
