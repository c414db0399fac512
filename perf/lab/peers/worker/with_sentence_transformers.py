"""sentence-transformers' CrossEncoder; the option `backend` is torch, torch-bf16, onnx or openvino."""

from __future__ import annotations

from typing import Any


class System:
    """See `__main__`."""

    packages = ("sentence-transformers", "torch", "transformers", "onnxruntime", "openvino", "optimum-intel")

    def __init__(
        self,
        checkpoint: str,
        options: dict[str, str],
        threads: int,
        max_length: int,
        batch_sizes: list[int],
        **_: Any,
    ) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads)
        backend = options["backend"]
        self.settings = [{"batch_size": size} for size in batch_sizes]
        self._model = CrossEncoder(
            checkpoint,
            device="cpu",
            max_length=max_length,
            local_files_only=True,
            backend=backend if backend in ("onnx", "openvino") else "torch",
            model_kwargs=_model_options(backend, threads),
        )
        self._raw = torch.nn.Identity()
        self.precision = _precision(self._model.model)

    def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return logits."""
        scores: list[float] = self._model.predict(
            [(query, text) for text in documents],
            batch_size=setting["batch_size"],
            activation_fn=self._raw,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return scores


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


def _precision(model: Any) -> str:
    """Return the arithmetic in use, as the back end itself reports it where it can."""
    compiled: Any = getattr(model, "request", None)
    if hasattr(compiled, "get_compiled_model"):
        compiled = compiled.get_compiled_model()
    if hasattr(compiled, "get_property"):
        return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return str(getattr(model, "dtype", "float32")).removeprefix("torch.")
