"""The built-in model with an fp16 graph beside its fp32 one: what `crossrank engine` and engine cuda start from.

`python -m tests.engine_bundle DIRECTORY` writes it, for perf/gpu.sh.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx_ir

from crossrank_export.precision import fp16_from_fp32
from crossrank_server.bundle import Bundle, Graph, load_bundle, sha256_of, write_manifest


def write_fp16_bundle(source: Bundle, path: Path, max_length: int = 512) -> Bundle:
    shutil.copytree(source.path, path)
    target = path / "model.fp16.onnx"
    fp32 = source.manifest.graph("fp32")
    onnx_ir.save(fp16_from_fp32(onnx_ir.load(source.file(fp32.file))), target)
    fp16 = Graph(file=target.name, precision="fp16", inputs=fp32.inputs, output=fp32.output)
    update = {
        "max_length": max_length,
        "graphs": [fp32, fp16],
        "files": {**source.manifest.files, target.name: sha256_of(target)},
    }
    write_manifest(path, source.manifest.model_copy(update=update))
    return load_bundle(path)


if __name__ == "__main__":
    from tests.conftest import ROOT

    write_fp16_bundle(load_bundle(ROOT / "server" / "crossrank_server" / "builtin"), Path(sys.argv[1]))
