"""`import crossrank` costs an application little: it loads no framework, and no package that only other uses need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "optimum",
    "fastapi",
    "starlette",
    "sqlalchemy",
    "uvicorn",
    "grpc",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "openvino",
    "huggingface_hub",
    "crossrank_server",
    "crossrank_export",
}


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import crossrank", HEAVY),
        ("import crossrank_client", {*HEAVY, "numpy", "crossrank", "google.protobuf"}),
        # The command line without a command.
        ("import crossrank_server.cli", {*HEAVY - {"crossrank_server"}, "numpy", "pydantic"}),
    ],
    ids=["library", "client", "command line"],
)
def test_an_import_loads_no_heavy_package(statement: str, forbidden: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines())
    assert statement.removeprefix("import ") in loaded
    assert loaded & forbidden == set()
