"""Triton model: token ids to logits on the CPU, in the embedded engine of crossrank.

It has the inputs and outputs that a TensorRT plan of the same bundle has: INT32 [rows, bucket] in, FP32 [rows, 1] out.
`execute` gets all requests that the dynamic batcher merged; their rows are stripped of padding, sorted by length and
scored together. `crossrank repository` copies this file into the repository, and overwrites changes there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray

from crossrank.bundles.bundle import load_bundle
from crossrank.engines.select import make_engine
from crossrank.errors import CrossrankError, InvalidRequest
from crossrank.packed import PairBatch, join_pairs, pairs_from_padded, take_pairs
from crossrank.scheduling.similar import first_similar

# A pair shorter than this share of the batch's longest waits for the next one, unless padding it costs less than a call
# (a GPU; measured on a CPU with 128 rows of 33 to 64 tokens: 111 us a row, 125 with a share of 0.75).
_MIN_LENGTH_SHARE = 0.5
# Padded tokens of one call of the engine, unless it likes more (a GPU): those of the warm-up,
# and 7% less CPU time a pair than with the 2,048 that the embedded engines take (measured with 32 and 64 rows of 97 to
# 128 tokens a request).
_MIN_BATCH_TOKENS = 4096


class TritonPythonModel:
    """An instance of the model: a process of its own with a single-threaded engine."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle beside this file; Triton refuses the model if that fails."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = load_bundle(Path(args["model_repository"]) / args["model_version"] / "bundle")
        self._engine = make_engine(
            bundle,
            parameters["crossrank_engine"],
            parameters["crossrank_precision"],
            threads=1,
        )
        self._output = config["output"][0]["name"]
        self._vocab_size = bundle.manifest.architecture.vocab_size
        self._max_length = bundle.manifest.max_length

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request; an invalid request does not fail the others."""
        responses: list[Any] = [None] * len(requests)
        sound: list[int] = []
        batches: list[PairBatch] = []
        for i, request in enumerate(requests):
            try:
                if request.is_cancelled():
                    responses[i] = _failure("the client cancelled the request", "CANCELLED")
                    continue
                batches.append(self._read(request))
                sound.append(i)
            except CrossrankError as error:
                responses[i] = _failure(error.message, error.grpc_status)
        if sound:
            self._answer(join_pairs(batches), [len(batch) for batch in batches], sound, responses)
        return responses

    def _read(self, request: Any) -> PairBatch:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        ids = tensors["input_ids"]
        if ids.shape[-1] > self._max_length:
            raise InvalidRequest(f"{ids.shape[-1]} tokens a pair are over the model's window of {self._max_length}")
        try:
            return pairs_from_padded(ids, tensors.get("token_type_ids"), tensors["attention_mask"], self._vocab_size)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None

    def _answer(self, batch: PairBatch, sizes: list[int], sound: list[int], responses: list[Any]) -> None:
        """Score the merged rows and set the response of every request."""
        try:
            logits = self._score(batch)
        except CrossrankError as error:
            for i in sound:
                responses[i] = _failure(error.message, error.grpc_status)
            return
        for i, own in zip(sound, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
            responses[i] = pb_utils.InferenceResponse([pb_utils.Tensor(self._output, own[:, None])])

    def _score(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits, float32 [rows]; rows of similar length are scored together where the engine pads."""
        if not self._engine.pads:
            return self._engine.infer(batch)
        most_tokens = max(self._engine.batch_tokens, _MIN_BATCH_TOKENS)
        lengths = batch.lengths
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        logits = np.empty(len(batch), np.float32)
        stop = len(order)
        ascending = lengths[order].tolist()
        while stop:
            longest = ascending[stop - 1]
            similar, _ = first_similar(ascending, stop, longest, _MIN_LENGTH_SHARE, self._engine.call_tokens)
            start = max(similar, stop - max(most_tokens // longest, 1))
            rows = order[start:stop]
            logits[rows] = self._engine.infer(take_pairs(batch, rows))
            stop = start
        return logits


def _failure(message: str, status: str) -> Any:
    codes = {"INVALID_ARGUMENT": "INVALID_ARG", "CANCELLED": "CANCELLED"}
    code = getattr(pb_utils.TritonError, codes.get(status, "INTERNAL"))
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
