"""Behaviour for the stand-ins of TensorRT 10.4, 11.4 and TensorRT for RTX (fake_tensorrt.py), and a GPU: none is here.

A "plan" is a JSON header (everything the builder was told), a zero byte, and the ONNX graph; running it runs the
graph in ONNX Runtime, on "device" memory that is the host's. `FakeDriver` stands for the GPU and NVIDIA's CUDA runtime.
"""
# ruff: noqa: N802  (CUDA's own names)

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from cuda.bindings import runtime

from crossrank.engines.tensorrt.device import Device
from tests.fake_tensorrt import RTX, Behaviour, fake_tensorrt

_TYPES = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64"}
WORKSPACE = 1 << 20
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64}


class FakeDriver:
    """A stand-in for `cuda.bindings.runtime` and a GPU: its memory is the host's, and copies stay within their blocks.

    Errors, kinds of copies and flags are those of the real module.
    """

    def __init__(self, name: str = "Tesla V100-SXM2-16GB", sm: int = 70, memory_bytes: int = 1 << 34) -> None:
        self.name, self.sm, self.left = name, sm, memory_bytes
        self.memory, self.pinned, self.streams, self.copied_bytes = {}, {}, set(), 0
        self.threads: set[int] = set()  # in which a CUDA context is current

    def __getattr__(self, name: str):
        value = getattr(runtime, name)
        if isinstance(value, (int, type)):
            return value
        raise NotImplementedError(f"the fake gives no behaviour to {name}")

    def device(self) -> Device:
        return Device(self.name, self.sm)

    def _answer(self, *values, error: str = "cudaSuccess"):
        return (getattr(runtime.cudaError_t, error), *values)

    def cudaDriverGetVersion(self):
        return self._answer(13000)

    def cudaGetDeviceCount(self):
        return self._answer(1)

    def cudaGetDeviceProperties(self, index):
        assert index == 0
        return self._answer(SimpleNamespace(name=self.name.encode(), major=self.sm // 10, minor=self.sm % 10))

    def cudaSetDevice(self, index):
        assert index == 0
        self.threads.add(threading.get_ident())
        return self._answer()

    def cudaMemGetInfo(self):
        return self._answer(self.left, 1 << 34)

    def cudaStreamCreateWithFlags(self, flags):
        self.streams.add(stream := max(self.streams, default=0) + 1)
        return self._answer(stream)

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        return self._answer()

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return self._answer()

    def cudaMalloc(self, size):
        if size > self.left:
            return self._answer(None, error="cudaErrorMemoryAllocation")
        self.left -= size
        return self._answer(self._block(self.memory, size))

    def cudaHostAlloc(self, size, flags):
        return self._answer(self._block(self.pinned, size))

    def _block(self, blocks, size):
        block = ctypes.create_string_buffer(size)
        blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaFree(self, address):
        self.left += len(self.memory.pop(address))
        return self._answer()

    def cudaFreeHost(self, address):
        del self.pinned[address]
        return self._answer()

    def cudaMemcpyAsync(self, target, source, count, kind, stream):
        assert stream in self.streams
        upload = kind == runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert upload or kind == runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        on_gpu, on_host = (target, source) if upload else (source, target)
        assert count <= len(self.memory[on_gpu]), "beyond the GPU's block"
        assert count <= len(self.pinned[on_host]), "beyond the pinned block"
        ctypes.memmove(target, source, count)
        self.copied_bytes += count
        return self._answer()


def install(
    monkeypatch,
    version: str,
    driver: FakeDriver,
    *,
    skew: float = 0.0,
    fails: Callable[[], bool] = lambda: False,
    overrides: Behaviour | None = None,
) -> ModuleType:
    """Make this process look like a machine with TensorRT and a GPU.

    Args:
        monkeypatch: Undoes it.
        version: Of TensorRT, or RTX.
        driver: The GPU.
        skew: Added to every logit that a plan gives.
        fails: Whether batches do not run.
        overrides: Behaviour in place of what this module supplies, to make a step fail.
    """
    behaviour: Behaviour = {}
    trt = fake_tensorrt(version, behaviour)
    _add_building(trt, behaviour)
    _add_running(trt, behaviour, skew, fails)
    if version == RTX:
        _add_rtx(trt, behaviour, driver)
    behaviour.update(overrides or {})
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if version == RTX else "tensorrt", trt)
    monkeypatch.setattr("cuda.bindings.runtime", driver)
    return trt


def plan_header(plan: bytes) -> dict:
    return json.loads(plan.partition(b"\0")[0])


def _new(cls: type, **values):
    """Make an object of a class that only TensorRT itself can make."""
    made = cls.__new__(cls)
    made.__dict__.update(values)
    return made


def _host_memory(trt: ModuleType, content: bytes):
    trt.IHostMemory.__bytes__ = lambda self: self._content
    return _new(trt.IHostMemory, _content=content)


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
            "sms": config._sms,
            "timings": config._cache._content.decode() if config._cache else "",
            "profiles": [profile._shapes for profile in config._profiles],
        }
        with open(network._path, "rb") as graph:
            return _host_memory(trt, json.dumps(header).encode() + b"\0" + graph.read())

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
            "Builder.create_builder_config": lambda b: _new(
                trt.IBuilderConfig, _profiles=[], _pools={}, _cleared=[], _sms=[], _cache=None
            ),
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
            "IBuilderConfig.set_compute_capability": lambda c, sm, index: c._sms.append(int(sm)) is None,
            "ITimingCache.serialize": lambda cache: _host_memory(trt, cache._content),
        }
    )


def new_context(trt: ModuleType, engine, strategy):
    if isinstance(strategy, trt.ExecutionContextAllocationStrategy):
        config = None
    else:
        config, strategy = strategy, strategy._strategy
        assert config._kernels is not None, "a runtime cache"
    assert strategy.name == "USER_MANAGED"
    return _new(
        trt.IExecutionContext,
        _engine=engine, _config=config, _profile=0, _shapes={}, _addresses={}, _workspace=None,
    )  # fmt: skip


def _add_running(trt: ModuleType, behaviour: Behaviour, skew: float, fails: Callable[[], bool]) -> None:
    def load(runtime, plan):
        try:
            header, graph = plan_header(plan), plan.partition(b"\0")[2]
        except ValueError:
            return None
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

    def set_profile(ctx, index, stream):
        ctx._profile, ctx._shapes = index, {}
        return 0 <= index < len(ctx._engine._state.header["profiles"])

    def set_input_shape(ctx, name, shape):
        low, _, high = ctx._engine._state.header["profiles"][ctx._profile][name]
        ctx._shapes[name] = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def execute(ctx, stream):
        state = ctx._engine._state
        assert ctx._workspace == WORKSPACE
        if fails():
            return False
        feed = {}
        for name, shape in ctx._shapes.items():
            dtype = np.dtype(_NUMPY[state.types[name]])
            raw = ctypes.string_at(ctx._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feed[name] = np.frombuffer(raw, dtype).reshape(shape)
        if ctx._config:
            ctx._config._kernels._content.add(str(shape))
        for name, value in zip(state.outputs, state.session.run(list(state.outputs), feed), strict=True):
            value = np.ascontiguousarray(value + np.asarray(skew, value.dtype))
            ctypes.memmove(ctx._addresses[name], value.ctypes.data, value.nbytes)
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
            "ICudaEngine.get_tensor_profile_shape": lambda e, name, index: e._state.header["profiles"][index][name],
            "ICudaEngine.device_memory_size_v2": lambda e: WORKSPACE,
            "ICudaEngine.create_execution_context": partial(new_context, trt),
            "IExecutionContext.set_optimization_profile_async": set_profile,
            "IExecutionContext.set_input_shape": set_input_shape,
            "IExecutionContext.set_tensor_address": lambda c, name, ptr: c._addresses.update({name: ptr}) is None,
            "IExecutionContext.set_device_memory": lambda c, memory, size: setattr(c, "_workspace", size),
            "IExecutionContext.execute_async_v3": execute,
        }
    )


def _add_rtx(trt: ModuleType, behaviour: Behaviour, driver: FakeDriver) -> None:
    def validity(runtime, header):
        bits = trt.EngineInvalidityDiagnostics
        try:
            built_for = json.loads(header.partition(b"\0")[0])
        except ValueError:
            return trt.EngineValidity.INVALID, int(bits.MALFORMED_ENGINE)
        if built_for["tensorrt"] != trt.__version__:
            return trt.EngineValidity.INVALID, int(bits.VERSION_MISMATCH)
        return trt.EngineValidity.VALID, 0

    def read_kernels(cache, content):
        known = content.startswith(b"kernels ") and threading.get_ident() in driver.threads
        if known:
            cache._content.update(json.loads(content.removeprefix(b"kernels ")))
        return known

    behaviour.update(
        {
            "Runtime.engine_header_size": lambda r: 1 << 16,
            "Runtime.get_engine_validity": validity,
            "ICudaEngine.create_runtime_config": lambda e: _new(trt.IRuntimeConfig, _strategy=None, _kernels=None),
            "IRuntimeConfig.set_execution_context_allocation_strategy": lambda c, s: setattr(c, "_strategy", s),
            "IRuntimeConfig.create_runtime_cache": lambda c: _new(trt.IRuntimeCache, _content=set()),
            "IRuntimeConfig.set_runtime_cache": lambda c, cache: setattr(c, "_kernels", cache) is None,
            "IRuntimeCache.deserialize": read_kernels,
            "IRuntimeCache.serialize": lambda c: _host_memory(
                trt, b"kernels " + json.dumps(sorted(c._content)).encode()
            ),
        }
    )
