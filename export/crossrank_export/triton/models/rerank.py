"""Triton model: a query and documents as text to scores, by inferences of the engine model beside it.

The pairs are made by the same code as in the gateway. Each bucket of sequence lengths is an inference of the engine
model, or several where that merges requests of all lengths; all are under way at once, and Triton merges them with
those of other clients. `crossrank repository` copies this file into the repository, and overwrites changes there.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray

from crossrank.bundles.bundle import MANIFEST, TOKENIZER, Bundle, Manifest, sha256_of
from crossrank.engines.triton.buckets import BucketPart, split_by_bucket, split_by_rows
from crossrank.errors import BundleError
from crossrank.native.padding import pad
from crossrank.packed import PairBatch, take_pairs
from crossrank.text.encoding import PairEncoder

ACTIVATIONS = ("identity", "sigmoid")
# Words of Triton's messages for a full queue and for a timeout.
_QUEUE_REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")


class _Failed(Exception):
    """A request that cannot be answered, with the name of Triton's status code."""

    def __init__(self, message: str, code: Any) -> None:
        super().__init__(message)
        self.code = code


class TritonPythonModel:
    """An instance of the model: a process of its own with a tokenizer, for one request at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and the manifest beside this file; Triton refuses the model if that fails."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = _load(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self._encoder = PairEncoder(bundle)
        self._pad_token_id = bundle.manifest.pad_token_id
        self._inputs = [tensor.name for tensor in bundle.manifest.graph("fp32").inputs]
        self._engine_model = parameters["crossrank_engine_model"]
        self._output = parameters["crossrank_engine_output"]
        self._buckets = [int(bucket) for bucket in parameters["crossrank_buckets"].split(",")]
        self._max_rows = int(parameters["crossrank_max_batch_size"])
        self._mixed_rows = int(parameters["crossrank_mixed_rows"])

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request."""
        return list(await asyncio.gather(*(self._respond(request) for request in requests)))

    async def _respond(self, request: Any) -> Any:
        try:
            if request.is_cancelled():
                raise _Failed("the client cancelled the request", pb_utils.TritonError.CANCELLED)
            activation = _activation(request)
            query, documents = _texts(request)
            logits = await self._score(query, documents, request.timeout())
        except _Failed as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error), error.code))
        scores = logits if activation == "identity" else _sigmoid(logits)
        return pb_utils.InferenceResponse([pb_utils.Tensor("SCORES", scores)])

    async def _score(self, query: str, documents: list[str], timeout_us: int) -> NDArray[np.float32]:
        """Return the logits, float32 [documents], in the order of the documents."""
        logits = np.empty(len(documents), np.float32)
        if not documents:
            return logits
        batch = self._encoder.encode(query, documents).batch
        if self._mixed_rows:
            parts = split_by_rows(batch.lengths, self._buckets, self._mixed_rows)
        else:
            parts = split_by_bucket(batch.lengths, self._buckets, self._max_rows)
        for part, own in zip(
            parts, await asyncio.gather(*(self._infer(batch, part, timeout_us) for part in parts)), strict=True
        ):
            logits[part.rows] = own
        return logits

    async def _infer(self, batch: PairBatch, part: BucketPart, timeout_us: int) -> NDArray[np.float32]:
        ids, types, mask = pad(take_pairs(batch, part.rows), part.length, self._pad_token_id)
        arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        request = pb_utils.InferenceRequest(
            model_name=self._engine_model,
            requested_output_names=[self._output],
            inputs=[pb_utils.Tensor(name, arrays[name]) for name in self._inputs],
            timeout=timeout_us,
        )
        response = await request.async_exec()
        if response.has_error():
            raise _failed_inference(response.error())
        logits: NDArray[np.float32] = pb_utils.get_output_tensor_by_name(response, self._output).as_numpy()
        return logits[:, 0]


def _failed_inference(error: Any) -> _Failed:
    """Return the engine model's error with its status: the Python backend reports every error as INTERNAL."""
    message, code = error.message(), error.code()
    if code == pb_utils.TritonError.INTERNAL and any(words in message for words in _QUEUE_REFUSALS):
        code = pb_utils.TritonError.UNAVAILABLE
    return _Failed(message, code)


def _load(path: Path) -> Bundle:
    """Load the part of a bundle that texts need: manifest and tokenizer."""
    manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    if sha256_of(path / TOKENIZER) != manifest.files[TOKENIZER]:
        raise BundleError(f"{path / TOKENIZER} is not the one of its manifest: write the repository again")
    return Bundle(path, manifest)


def _activation(request: Any) -> str:
    activation = json.loads(request.parameters() or "{}").get("activation", "identity")
    if activation not in ACTIVATIONS:
        raise _Failed(
            f"parameter activation is {activation!r}: use one of {', '.join(ACTIVATIONS)}",
            pb_utils.TritonError.INVALID_ARG,
        )
    return str(activation)


def _texts(request: Any) -> tuple[str, list[str]]:
    query = pb_utils.get_input_tensor_by_name(request, "QUERY").as_numpy().reshape(-1)
    documents = pb_utils.get_input_tensor_by_name(request, "DOCUMENTS").as_numpy().reshape(-1)
    try:
        return query[0].decode(), [document.decode() for document in documents]
    except UnicodeDecodeError as error:
        raise _Failed(f"QUERY and DOCUMENTS must be UTF-8: {error}", pb_utils.TritonError.INVALID_ARG) from None


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # In float64, as exp of a large negative logit overflows float32.
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
