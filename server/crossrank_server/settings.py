"""Every setting of the server: flag, environment variable, default and trade-off in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from crossrank_server.bundle_cache import default_cache_dir


class ServeSettings(BaseSettings):
    """Settings of `crossrank serve`; a flag wins over the environment (`CROSSRANK_` and the upper-case name)."""

    model_config = SettingsConfigDict(env_prefix="CROSSRANK_", frozen=True, protected_namespaces=())

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback is reachable by others.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    engine: Literal["auto", "native", "openvino", "onnxruntime", "triton"] = Field(
        "auto",
        description="What computes the scores. auto takes the native encoder for TinyBERT-L2 models on CPUs with AMX or"
        " AVX2, else OpenVINO where it is installed, else ONNX Runtime; triton sends token ids to the Triton servers of"
        " --triton-url.",
    )
    triton_url: str = Field(
        "grpc://127.0.0.1:8001",
        description="Triton's gRPC addresses for --engine triton, like grpc://host:8001,host2:8001. Work goes to the"
        " least busy one; one that fails is left out until it is back.",
    )
    triton_model: str = Field(
        "",
        description="Name of the engine model in Triton. Empty: the model id without its owner, as crossrank"
        " repository names it.",
    )
    triton_wait_s: float = Field(
        30.0,
        ge=0,
        description="Seconds to wait at start-up for a first Triton that is ready, as both are often started together.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Arithmetic. auto takes bf16 where the CPU multiplies it natively: about twice as fast,"
        " logits within 0.05 of fp32. fp32 gives the reference's scores to 1e-4.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Inferences at a time, one thread each; 0 is one for each core this process may use.",
    )
    max_documents: int = Field(
        1000,
        ge=1,
        description="Documents in one request. More would make others wait behind a single caller.",
    )
    max_body_bytes: int = Field(
        10_000_000, ge=1024, description="Size of one request body. Refused before it is read whole."
    )
    max_waiting_documents: int = Field(
        20_000,
        ge=1,
        description="Documents waiting over all requests; beyond it requests get 429 at once instead of a long wait.",
    )
    request_timeout_s: float = Field(
        60.0, gt=0, description="Seconds after which an unfinished request is given up with 504."
    )
    shutdown_grace_s: int = Field(
        20, ge=0, description="Seconds that requests under way may take to finish after SIGTERM."
    )
    offline: bool = Field(False, description="Never touch the network: only cached and local models are served.")
    cache_dir: Path = Field(
        default_factory=default_cache_dir, description="Where downloaded and converted models are kept."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
