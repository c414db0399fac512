"""Build Triton's ModelConfig as protobuf, which holds no wrong field.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto and
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
"""

from __future__ import annotations

from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from crossrank.bundles.bundle import TOKENIZER, Manifest
from crossrank_export.triton.spec import MIXED_ROWS, RepositorySpec

_ACCELERATOR_WORKSPACE_BYTES = 4 << 30
# Directory inside the container; a volume mounted there keeps the engines between starts.
ACCELERATOR_CACHE = "/var/cache/crossrank"


def engine_config(spec: RepositorySpec, manifest: Manifest) -> Any:
    """Return the ModelConfig of the engine model: token ids to logits."""
    config = pb.ModelConfig(
        name=spec.name,
        max_batch_size=spec.max_batch,
        input=[
            pb.ModelInput(
                name=tensor.name,
                data_type=pb.TYPE_INT32,
                dims=[-1],
                allow_ragged_batch=spec.merges_lengths,
            )
            for tensor in spec.graph.inputs
        ],
        output=[pb.ModelOutput(name=spec.graph.output.name, data_type=pb.TYPE_FP32, dims=[1])],
        version_policy=_latest(),
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=spec.queue.delay_us,
            default_queue_policy=pb.ModelQueuePolicy(
                timeout_action=pb.ModelQueuePolicy.REJECT,
                default_timeout_microseconds=spec.queue.timeout_us,
                allow_timeout_override=True,
                max_queue_size=spec.queue.max_requests,
            ),
        ),
        optimization=pb.ModelOptimizationPolicy(input_pinned_memory=_enabled(), output_pinned_memory=_enabled()),
        model_warmup=[_warmup(spec, i) for i in range(len(spec.buckets))],
    )
    {"cpu": _on_cpu, "onnxruntime-gpu": _on_onnxruntime, "tensorrt": _on_tensorrt}[spec.target](config, spec)
    _add_parameters(config, {**_facts(spec, manifest), **_target_facts(spec)})
    return config


def text_config(spec: RepositorySpec, manifest: Manifest) -> Any:
    """Return the ModelConfig of the text model: a query and documents to scores."""
    config = pb.ModelConfig(
        name=spec.text_name,
        backend="python",
        # A request is one query with its list of documents: not a row of a batch.
        max_batch_size=0,
        input=[
            pb.ModelInput(name="QUERY", data_type=pb.TYPE_STRING, dims=[1]),
            pb.ModelInput(name="DOCUMENTS", data_type=pb.TYPE_STRING, dims=[-1]),
        ],
        output=[pb.ModelOutput(name="SCORES", data_type=pb.TYPE_FP32, dims=[-1])],
        version_policy=_latest(),
        instance_group=[pb.ModelInstanceGroup(count=spec.text_instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
    )
    engine = {
        "crossrank_engine_model": spec.name,
        "crossrank_engine_output": spec.graph.output.name,
        "crossrank_max_batch_size": str(spec.max_batch),
    }
    _add_parameters(config, {**_facts(spec, manifest), **engine})
    return config


def text_from_config(config: Any) -> str:
    """Return a configuration as text for config.pbtxt, with sorted map entries, so that equal ones give equal text."""
    return str(text_format.MessageToString(config))


def config_from_text(text: str) -> Any:
    """Parse a config.pbtxt; an unknown field or value raises `google.protobuf.text_format.ParseError`."""
    return text_format.Parse(text, pb.ModelConfig())


def _on_cpu(config: Any, spec: RepositorySpec) -> None:
    config.backend = "python"
    config.instance_group.add(count=spec.instances, kind=pb.ModelInstanceGroup.KIND_CPU)


def _on_onnxruntime(config: Any, spec: RepositorySpec) -> None:
    """Source: https://github.com/triton-inference-server/onnxruntime_backend (README.md)."""
    config.platform = "onnxruntime_onnx"
    config.backend = "onnxruntime"
    config.default_model_filename = "model.onnx"
    config.instance_group.add(count=spec.instances, kind=pb.ModelInstanceGroup.KIND_GPU)
    middle = len(spec.buckets) // 3
    points = {
        "min": (1, 1),
        "opt": (spec.opt_batches[middle], spec.buckets[middle]),
        "max": (spec.max_batch, spec.buckets[-1]),
    }
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    accelerator.parameters.update(
        {
            "precision_mode": spec.graph.precision.upper(),
            "max_workspace_size_bytes": str(_ACCELERATOR_WORKSPACE_BYTES),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ACCELERATOR_CACHE,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": ACCELERATOR_CACHE,
            "trt_layer_norm_fp32_fallback": "1",
            "trt_builder_optimization_level": "5",
            # One wide profile: otherwise an engine is built for every new shape, during a request.
            **{
                f"trt_profile_{point}_shapes": ",".join(
                    f"{tensor.name}:{rows}x{length}" for tensor in spec.graph.inputs
                )
                for point, (rows, length) in points.items()
            },
        }
    )


def _on_tensorrt(config: Any, spec: RepositorySpec) -> None:
    """Source: https://github.com/triton-inference-server/tensorrt_backend (README.md)."""
    assert spec.plan is not None  # make_spec always sets it for this target; for mypy
    config.platform = "tensorrt_plan"
    config.backend = "tensorrt"
    # Triton falls back to the default name where it has no plan for the GPU; its error message shows this name.
    config.default_model_filename = f"no-plan-for-this-gpu.the-one-here-is-{spec.plan['file']}"
    for sm in spec.plan["sms"]:
        config.cc_model_filenames[f"{sm // 10}.{sm % 10}"] = spec.plan["file"]
    config.instance_group.add(
        count=spec.instances,
        kind=pb.ModelInstanceGroup.KIND_GPU,
        profile=[str(i) for i in range(len(spec.buckets))],
    )
    # Memory for the activations of the profile in use, not of the largest.
    _add_parameters(config, {"execution_context_allocation_strategy": "ON_PROFILE_CHANGE"})
    cuda = config.optimization.cuda
    cuda.graphs = True
    cuda.output_copy_stream = True
    for bucket in spec.buckets:
        for rows in spec.graph_batches:
            graph = cuda.graph_spec.add(batch_size=rows)
            for tensor in spec.graph.inputs:
                graph.input[tensor.name].dim.append(bucket)


def _latest() -> Any:
    return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1))


def _enabled() -> Any:
    return pb.ModelOptimizationPolicy.PinnedMemoryBuffer(enable=True)


def _warmup(spec: RepositorySpec, i: int) -> Any:
    """Return a warm-up batch of zeros for bucket i: only the shape decides which kernels run."""
    tensor = pb.ModelWarmup.Input(data_type=pb.TYPE_INT32, dims=[spec.buckets[i]], zero_data=True)
    return pb.ModelWarmup(
        name=f"bucket_{spec.buckets[i]}",
        batch_size=spec.opt_batches[i],
        inputs={entry.name: tensor for entry in spec.graph.inputs},
        count=1,
    )


def _facts(spec: RepositorySpec, manifest: Manifest) -> dict[str, str]:
    """Return the parameters that a client checks before it sends ids: model, tokenizer, buckets."""
    return {
        "crossrank_model_id": manifest.model_id,
        "crossrank_tokenizer_sha256": manifest.files[TOKENIZER],
        "crossrank_max_length": str(manifest.max_length),
        "crossrank_buckets": ",".join(map(str, spec.buckets)),
        # Best number of rows of a request with mixed lengths; 0 where a request must be of one bucket.
        "crossrank_mixed_rows": str(min(MIXED_ROWS, spec.max_batch) if spec.merges_lengths else 0),
    }


def _target_facts(spec: RepositorySpec) -> dict[str, str]:
    if spec.target == "cpu":
        return {
            "crossrank_target": "cpu",
            "crossrank_engine": spec.engine,
            "crossrank_precision": spec.precision,
        }
    return {"crossrank_target": spec.target, "crossrank_precision": spec.graph.precision}


def _add_parameters(config: Any, parameters: dict[str, str]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value
