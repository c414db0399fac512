"""Runs sentence-transformers' CrossEncoder for `crossrank bench peers`, in an environment that has no crossrank.

Started by that environment's Python as a script; imports nothing of this project. Reads one JSON object a line from
stdin and answers each with one on stdout:

    {"op": "load", "checkpoint", "backend", "threads", "max_length", "requests"}  -> {"versions", "precision"}
    {"op": "score", "request": 0, "batch_size": 32}                               -> {"logits": [..]}
    {"op": "run", "seconds": 5, "batch_size": 32}                                 -> {"seconds", "latencies_s": [..]}
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("sentence-transformers", "torch", "transformers", "onnxruntime", "openvino", "optimum-intel")


class _Peer:
    """A loaded model and the requests it is given."""

    def __init__(self, message: dict[str, Any]) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(message["threads"])
        backend = message["backend"]
        self._requests = [
            [(request["query"], text) for text in request["documents"]] for request in message["requests"]
        ]
        self._order: Iterator[int] = itertools.cycle(range(len(self._requests)))
        self._model = CrossEncoder(
            message["checkpoint"],
            device="cpu",
            max_length=message["max_length"],
            local_files_only=True,
            backend=backend if backend in ("onnx", "openvino") else "torch",
            model_kwargs=_model_options(backend, message["threads"]),
        )
        # Logits: crossrank's raw scores are compared with them.
        self._activation = torch.nn.Identity()

    def precision(self) -> str:
        """Return the arithmetic in use, as the back end itself reports it where it can."""
        inner: Any = self._model.model
        compiled: Any = getattr(inner, "request", None)
        if hasattr(compiled, "get_compiled_model"):
            compiled = compiled.get_compiled_model()
        if hasattr(compiled, "get_property"):
            return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        return str(getattr(inner, "dtype", "float32")).removeprefix("torch.")

    def score(self, request: int, batch_size: int) -> list[float]:
        """Return the logits of one request's documents, in order."""
        scores = self._model.predict(
            self._requests[request],
            batch_size=batch_size,
            activation_fn=self._activation,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return [float(score) for score in scores]

    def run(self, seconds: float, batch_size: int) -> dict[str, Any]:
        """Score requests one after another, in order, until the time is up; return when each was done."""
        latencies_s: list[float] = []
        begin = last = time.perf_counter()
        while last - begin < seconds:
            self.score(next(self._order), batch_size)
            now = time.perf_counter()
            latencies_s.append(now - last)
            last = now
        return {"seconds": last - begin, "latencies_s": latencies_s}


def _model_options(backend: str, threads: int) -> dict[str, Any]:
    """Return what the back end needs to keep to its threads; everything else stays at its default."""
    if backend == "torch-bf16":
        import torch

        return {"torch_dtype": torch.bfloat16}
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = threads
        return {"provider": "CPUExecutionProvider", "session_options": session}
    if backend == "openvino":
        return {"ov_config": {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}}
    return {}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer until stdin ends."""
    # Libraries print what they like on stdout; answers go where only this protocol writes.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    peer: _Peer | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if message["op"] == "load":
            peer = _Peer(message)
            answer: dict[str, Any] = {"versions": _versions(), "precision": peer.precision()}
        elif peer is None:
            raise RuntimeError("load comes first")
        elif message["op"] == "score":
            answer = {"logits": peer.score(message["request"], message["batch_size"])}
        else:
            answer = peer.run(message["seconds"], message["batch_size"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
