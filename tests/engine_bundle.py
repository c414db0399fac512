"""A model with both fp16 graphs beside its fp32 one: what `crossrank engine` and the GPU's engines start from.

`python -m tests.engine_bundle DIRECTORY [MODEL]` writes it, for make bench-gpu and make bench-tensorrt. MODEL is what
crossrank serve takes; the built-in one by default.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx_ir

from crossrank.bundles.bundle import Bundle, Graph, load_bundle, sha256_of, write_manifest
from crossrank.resolve import resolve_model
from crossrank_export.precision import fp16_for_onnxruntime, fp16_from_fp32
from crossrank_export.variants import FILE_FOR_ONNXRUNTIME, FILES


def write_fp16_bundle(source: Bundle, path: Path, max_length: int = 512) -> Bundle:
    shutil.copytree(source.path, path)
    fp32 = source.manifest.graph("fp32")
    model = onnx_ir.external_data.load_to_model(onnx_ir.load(source.file(fp32.file)))
    fused, _ = fp16_for_onnxruntime(model)
    assert fused is not None
    fp16 = Graph(file=FILES["fp16"], precision="fp16", inputs=fp32.inputs, output=fp32.output)
    fp16_fused = fp16.model_copy(update={"file": FILE_FOR_ONNXRUNTIME, "operators": "onnxruntime"})
    onnx_ir.save(fp16_from_fp32(model), path / fp16.file)
    onnx_ir.save(fused, path / fp16_fused.file)
    written = {graph.file: sha256_of(path / graph.file) for graph in (fp16, fp16_fused)}
    update = {
        "max_length": max_length,
        "graphs": [fp32, fp16, fp16_fused],
        "files": {**source.manifest.files, **written},
    }
    write_manifest(path, source.manifest.model_copy(update=update))
    return load_bundle(path)


if __name__ == "__main__":
    write_fp16_bundle(resolve_model(sys.argv[2] if len(sys.argv) > 2 else "builtin"), Path(sys.argv[1]))
