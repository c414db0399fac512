"""Models exported to ONNX the ways that exist, and compared on random pairs."""

from __future__ import annotations

import functools
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.checkpoints import SMALL, build_model

BATCHES = ((1, 4), (3, 17), (5, 33), (2, 64))
"""(pairs, tokens) that a graph is run with; all but the first pair of a batch are padded."""


@dataclass(frozen=True)
class Exporter:
    """One way to ONNX: torch's tracing exporter (optimum's too) or its newer one over torch.export."""

    dynamo: bool
    attention: str
    opset: int

    def __str__(self) -> str:
        return f"{'dynamo' if self.dynamo else 'legacy'}-{self.attention}-{self.opset}"


def export_named(name: str, exporter: Exporter, path: Path, **changes: Any) -> ir.Model:
    """Build one of the random checkpoints and export it; of the small ones each is exported once in a run."""
    if name not in SMALL:
        return export_onnx(build_model(name, attention=exporter.attention, **changes), exporter, path)
    path.write_bytes(_small_export(name, exporter, **changes))
    return ir.load(path)


@functools.cache
def _small_export(name: str, exporter: Exporter, **changes: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="crossrank-export-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(build_model(name, attention=exporter.attention, **changes), exporter, path)
        return path.read_bytes()


def export_onnx(model: Any, exporter: Exporter, path: Path) -> ir.Model:
    """Export a model whose output has `logits`; batch and sequence are dynamic."""
    import torch

    takes_types = model.config.model_type in ("bert", "electra")
    names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if takes_types else 2]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits

    example = {key: torch.from_numpy(array) for key, array in random_batch(names, 2, 9).items()}
    arguments = tuple(example[name] for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own exporters at length
        if exporter.dynamo:
            axes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("sequence", max=512)}
            program = torch.onnx.export(
                Logits().eval(),
                arguments,
                dynamo=True,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=tuple(axes for _ in names),
                opset_version=exporter.opset,
                verbose=False,
            )
            program.save(path)
        else:
            torch.onnx.export(
                Logits().eval(),
                arguments,
                path,
                dynamo=False,
                input_names=names,
                output_names=["logits"],
                opset_version=exporter.opset,
                dynamic_axes={**{name: {0: "batch", 1: "sequence"} for name in names}, "logits": {0: "batch"}},
            )
    return ir.load(path)


def random_batch(names: list[str], pairs: int, tokens: int, vocabulary: int = 200) -> dict[str, NDArray[Any]]:
    """Return seeded int64 inputs [pairs, tokens] with padding and both segments; ids 0 - 4 are special tokens."""
    rng = np.random.default_rng(1000 * pairs + tokens)
    lengths = np.array([tokens, *rng.integers(min(2, tokens), tokens + 1, pairs - 1)])
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, rng.integers(5, vocabulary, (pairs, tokens)), 1)
    types = ((np.arange(tokens) >= lengths[:, None] // 2) & (mask == 1)).astype(np.int64)
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: arrays[name] for name in names}


def session_of(model: ir.Model) -> Any:
    """Return an ONNX Runtime session of one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def logits_of(model: ir.Model, batches: tuple[tuple[int, int], ...] = BATCHES) -> NDArray[np.float32]:
    """Run a model in ONNX Runtime over seeded batches and return all logits, float32 [pairs, labels]."""
    session = session_of(model)
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    rows = []
    for pairs, tokens in batches:
        batch = random_batch([value.name for value in session.get_inputs()], pairs, tokens)
        feeds = {value.name: batch[value.name].astype(types[value.type]) for value in session.get_inputs()}
        rows.append(session.run(["logits"], feeds)[0])
    return np.concatenate(rows)
