"""Start a Triton for the measurement, or ask a running one over gRPC what it serves."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Manifest
from crossrank.engines.triton.address import targets_from_url
from crossrank.engines.triton.contract import Contract, contract_from_replies
from crossrank.errors import SetupError
from crossrank_perf.base.processes import find_pid
from crossrank_perf.base.server import free_ports, running_command

TEXT_SUFFIX = "_rerank"
_ANSWER_LIMIT_S = 10.0


@dataclass(frozen=True)
class TritonFacts:
    """Facts that a running Triton states about itself and a model.

    Attributes:
        address: `host:port` of its gRPC service.
        version: Version of tritonserver.
        model: Name of the engine model.
        contract: Inputs, outputs and buckets of the engine model.
        parameters: `parameters` of the model's configuration.
        instances: Number of model instances, which compute at the same time.
        max_rows: Most pairs in an inference.
        has_text_model: Whether `<model>_rerank` is ready beside it.
        pid: Process id of the server, None where it is not on this machine.
    """

    address: str
    version: str
    model: str
    contract: Contract
    parameters: dict[str, str]
    instances: int
    max_rows: int
    has_text_model: bool
    pid: int | None

    @property
    def text_model(self) -> str:
        """Return the name of the text model."""
        return self.model + TEXT_SUFFIX

    @property
    def on_cpu(self) -> bool:
        """Return whether an embedded engine of crossrank computes in it."""
        return self.parameters.get("crossrank_target") == "cpu"

    def documents_computed(self) -> int:
        """Return the number of pairs that the engine model has computed since it was loaded.

        Raises:
            SetupError: Triton does not answer.
        """
        with _client(self.address) as client:
            reply = client.get_inference_statistics(self.model, client_timeout=_ANSWER_LIMIT_S)
        return sum(int(each.inference_count) for each in reply.model_stats)


def ask_triton(url: str, model: str, manifest: Manifest) -> TritonFacts:
    """Ask a running Triton for the engine model of a bundle.

    Args:
        url: One address as `crossrank serve --triton-url` takes it.
        model: Name of the engine model.
        manifest: Manifest of the bundle that it must serve.

    Raises:
        SetupError: It does not answer, does not serve the model, or serves another one under that name.
    """
    targets = targets_from_url(url)
    if len(targets) > 1:
        raise SetupError(f"--url {url} names {len(targets)} servers: perf_analyzer measures one")
    address = str(targets[0])
    with _client(address) as client:
        if not client.is_model_ready(model, client_timeout=_ANSWER_LIMIT_S):
            index = client.get_model_repository_index(client_timeout=_ANSWER_LIMIT_S).models
            present = ", ".join(each.name for each in index) or "none"
            raise SetupError(
                f"Triton at {address} has no model {model} that is ready, only: {present}. "
                "Write it with crossrank repository, or name another with --triton-model"
            )
        metadata = client.get_model_metadata(model, client_timeout=_ANSWER_LIMIT_S)
        config = client.get_model_config(model, client_timeout=_ANSWER_LIMIT_S).config
        return TritonFacts(
            address=address,
            version=str(client.get_server_metadata(client_timeout=_ANSWER_LIMIT_S).version),
            model=model,
            contract=contract_from_replies(manifest, metadata, config),
            parameters={name: value.string_value for name, value in config.parameters.items()},
            instances=sum(group.count for group in config.instance_group),
            # Not that of the contract, which is the most that a gateway sends.
            max_rows=int(config.max_batch_size),
            has_text_model=bool(client.is_model_ready(model + TEXT_SUFFIX, client_timeout=_ANSWER_LIMIT_S)),
            pid=find_pid(f"http://{address}"),
        )


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Yield a client, and turn its errors into SetupError."""
    try:
        from tritonclient.grpc import InferenceServerClient, InferenceServerException
    except ImportError:
        raise SetupError("crossrank perf-analyzer needs tritonclient: pip install 'crossrank[triton]'") from None
    with closing(InferenceServerClient(address)) as client:
        try:
            yield client
        except InferenceServerException as error:
            raise SetupError(
                f"no Triton answers at {address} ({error.message()}): start it, correct --url, "
                "or leave it out to have one started here"
            ) from None


@contextmanager
def started_triton(model: str) -> Iterator[str]:
    """Run `crossrank triton --model MODEL` on free ports of 127.0.0.1; yield its gRPC address, and end it afterwards.

    Raises:
        SetupError: It ended, or was not ready within three minutes; the message holds the last line that it printed.
    """
    http_port, grpc_port, metrics_port = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="crossrank-triton-") as folder:
        arguments = ["triton", "--model", model, "--run-dir", str(Path(folder) / "run")]
        arguments += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), "--metrics-port", str(metrics_port)]
        with running_command(arguments, http_port, "/v2/health/ready"):
            yield f"127.0.0.1:{grpc_port}"
