"""Every setting of the server: flag, environment variable, default and trade-off in one place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from crossrank.bundles.cache import default_cache_dir
from crossrank.engines.names import EngineName, PrecisionName

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _worker_number(value: str) -> str:
    if value != "auto" and not (value.isascii() and value.isdigit() and 1 <= int(value) <= 999):
        raise ValueError("it must be auto or a number from 1 to 999")
    return value


def _origins(value: str) -> str:
    if value.strip() == "*":
        return "*"
    return ",".join(_origin(part.strip().lower()) for part in value.split(",") if part.strip())


def _origin(value: str) -> str:
    """Return an origin as browsers send it."""
    if not _ORIGIN.fullmatch(value):
        raise ValueError(
            f"{value[:80]!r} is no origin: write scheme://host or scheme://host:port, without a path, several "
            "separated by commas, or * alone for all"
        )
    return value.removesuffix(_DEFAULT_PORTS.get(value.partition("://")[0], ""))


def _host_names(value: str) -> str:
    return ",".join(_host_name(part.strip().lower()) for part in value.split(",") if part.strip())


def _host_name(value: str) -> str:
    if value != "*" and not _HOST_NAME.fullmatch(value):
        raise ValueError(
            f"{value[:80]!r} is no host name: write names without scheme, port or path, separated by commas, or * for "
            "any"
        )
    return value


class ServeSettings(BaseSettings):
    """Settings of `crossrank serve`; a flag wins over the environment (`CROSSRANK_` and the upper-case name)."""

    model_config = SettingsConfigDict(env_prefix="CROSSRANK_", frozen=True, protected_namespaces=())

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback is reachable by others.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for gRPC, on the same address; 0 takes a free one and prints it. Off unless given: it is one"
        " more open port, and costs 0.2 s at start-up and 15 MB.",
    )
    engine: EngineName = Field(
        "auto",
        description="What computes the scores. auto takes the GPU (cuda) where onnxruntime-gpu is installed and finds"
        " one, else the native encoder for TinyBERT-L2, TinyBERT-L4 and MiniLM models on x86 CPUs with AVX2, else"
        " OpenVINO where it is installed, else ONNX Runtime; crossrank engines prints the whole order and what is taken"
        " here. tensorrt runs a TensorRT plan on an NVIDIA GPU, built at the first start; auto does not take it, as no"
        " plan has run on a GPU yet. triton sends token ids to the Triton servers of --triton-url.",
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
    precision: PrecisionName = Field(
        "auto",
        description="Arithmetic. auto takes bf16 where the CPU multiplies it natively: about twice as fast,"
        " logits within 0.05 of fp32; and fp16 on a GPU, where the bundle has it. fp32 gives the reference's scores to"
        " 1e-4. fp16 and int8 are graphs of the bundle, which crossrank export writes.",
    )
    label: int | None = Field(
        None,
        ge=0,
        description="Which logit is the score, counted from 0, of models that give several; a bundle has one already.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Inferences at a time, one thread each; 0 is one for each core this process may use, two on a GPU.",
    )
    workers: Annotated[str, AfterValidator(_worker_number)] = Field(
        "1",
        description="Processes that share the ports, each with its share of the cores. auto is one a core with --engine"
        " triton, as Python uses one core a process; one for every four cores with a GPU; else one, as engines on CPUs"
        " use all cores and fill batches better together. Each takes about 170 MB, or 1.3 GB and memory of the GPU;"
        " queue limits and --memory-budget-mb hold for each.",
    )
    strict_model_names: bool = Field(
        True,
        description="Refuse a model name that is not served; otherwise it gets the default model, as some applications"
        " send a fixed name.",
    )
    max_documents: int = Field(
        1000,
        ge=1,
        description="Documents in one request. More would make others wait behind a single caller.",
    )
    max_body_bytes: int = Field(
        10_000_000, ge=1024, description="Size of one request body. Refused before it is read whole."
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="Open HTTP connections. Beyond it idle ones make room, those of the address that has most first;"
        " where all are in use, new ones get 503. An idle one takes about 15 kB. gRPC may have as many.",
    )
    client_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds in which a client must send the headers of a request, and for which a body may stop or an"
        " answer not be read; beyond that they have to move at 10,000 bytes a second. A message of gRPC must be whole,"
        " and its answer be taken, within this time.",
    )
    idle_timeout_s: float = Field(
        75.0,
        gt=0,
        description="Seconds for which a connection is kept open without a request. Longer than a load balancer keeps"
        " its own, or it may send a request as the connection is closed.",
    )
    cors_origin: Annotated[str, AfterValidator(_origins)] = Field(
        "",
        description="Origins whose pages may call the server by script, like https://app.example.org, separated by"
        " commas; * is every page that a caller's browser has open. Empty: none but the server's own page.",
    )
    allowed_hosts: Annotated[str, AfterValidator(_host_names)] = Field(
        "",
        description="Names under which callers reach the server (the header Host), beside localhost and addresses,"
        " separated by commas; * is any. Others, and pages of other websites, are refused where it listens on loopback"
        " or names are given here: a proxy in front that passes its own name on needs it here.",
    )
    max_waiting_documents: int = Field(
        20_000,
        ge=1,
        description="Documents waiting over all requests; beyond it requests get 429 at once instead of a long wait.",
    )
    max_waiting_batch_documents: int = Field(
        100_000,
        ge=1,
        description="The same for requests with X-Tier: batch, which never count against the others. They wait longer,"
        " so more may; each takes about 2 kB.",
    )
    max_queue_s: float = Field(
        5.0,
        gt=0,
        description="Seconds that a request may be expected to wait for its turn, by the speed measured; beyond it, 429"
        " at once. A request may wait 20 times as long as it takes itself, if that is more and leaves it time to be"
        " answered.",
    )
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds after which an unfinished request is given up with 504, from when its model is awake.",
    )
    batch_timeout_s: float = Field(
        600.0,
        gt=0,
        description="The same for requests with X-Tier: batch, which wait while others keep the cores busy.",
    )
    pin: str = Field(
        "",
        description="Models beside the first that are loaded at start and never sleep, by name, separated by commas;"
        " all pins every one. The others take no memory until they are asked for: their first request gets 503 with"
        " Retry-After, or waits if it has Prefer: wait=N.",
    )
    idle_sleep_s: float = Field(
        900.0,
        ge=0,
        description="Seconds without a request after which a model that is not pinned gives its memory back; 0 is"
        " never. Shorter saves memory, longer saves callers the load: about 0.3 s for TinyBERT, 15 s for the largest.",
    )
    memory_budget_mb: float = Field(
        0.0,
        ge=0,
        description="MB for all loaded models, each taken as 35 MB and 3.5 times its graph file; 0 is no limit. For a"
        " new one the least recently used idle ones are put to sleep; models in use never are, and requests for the new"
        " one then get 503. The server itself needs about 150 MB beside it.",
    )
    shutdown_grace_s: int = Field(
        20, ge=0, description="Seconds that requests under way may take to finish after SIGTERM."
    )
    store: str = Field(
        "",
        description="Where keys, credit and usage are kept: sqlite:///file.db for gateways of one machine,"
        " postgresql://user:password@host/database for several. Empty: no keys, anybody who reaches the address is"
        " served.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Serve without keys also on an address that others can reach, as behind a gateway that checks"
        " them. Otherwise that is refused.",
    )
    limits_store: str = Field(
        "",
        description="redis://host:6379 counts the keys' limits there, which takes most writes off the store. Empty:"
        " in the store.",
    )
    store_timeout_s: float = Field(
        1.0,
        ge=0.1,
        le=60,
        description="Seconds that a request waits for the stores of keys and limits in all; then it gets 503, and after"
        " it, at once, all requests that need what does not answer, until it does. Shorter where many wait, longer for"
        " a store far away.",
    )
    flush_window_s: float = Field(
        1.0,
        ge=0.05,
        le=60,
        description="Usage is in the store this long after it was recorded, or, while that does not answer, in a file"
        " of --cache-dir that the next start writes to it. Longer means fewer writes and more lost if the process is"
        " killed.",
    )
    usd_per_1000_documents: float | None = Field(
        None,
        ge=0,
        description="Price of all models that --prices does not name. None: the price of `crossrank models`, 0.008"
        " for a model that is not listed there.",
    )
    batch_price_factor: float = Field(
        0.5, ge=0, description="Price of X-Tier: batch as a share of the realtime price, where --prices gives none."
    )
    prices: str = Field(
        "",
        description="Prices per 1,000 documents by model, in USD: MODEL=REALTIME or MODEL=REALTIME/BATCH, separated by"
        " commas.",
    )
    shutdown_delay_s: float = Field(
        0.0,
        ge=0,
        description="Seconds between SIGTERM, when /health/ready turns 503, and refusing new connections, so that load"
        " balancers look elsewhere first. It adds to the time that a restart takes.",
    )
    tls_cert: str = Field(
        "",
        description="PEM file of the server's certificate, intermediate ones after it: HTTPS, and gRPC over TLS, at"
        " least version 1.2. SIGHUP reads this file and the next two again, for new connections; where they are no"
        " good, those in use stay.",
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key, without a passphrase.")
    tls_client_ca: str = Field(
        "",
        description="PEM file of the authorities whose client certificates are accepted; a caller without one is"
        " refused (mutual TLS). Probes and Prometheus need one then too.",
    )
    offline: bool = Field(False, description="Never touch the network: only cached and local models are served.")
    cache_dir: Path = Field(
        default_factory=default_cache_dir, description="Where downloaded and converted models are kept."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged. info has a line for each request."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Lines for people, or one JSON object a line for what collects logs."
    )
