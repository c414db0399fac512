"""The generated code in the repository is what `make proto` makes of the .proto files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import google.rpc

from tests.conftest import ROOT

PROTO = ROOT / "client" / "crossrank_client" / "proto"


def test_the_generated_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    (googleapis,) = google.rpc.__path__
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "client", "-I", Path(googleapis).parent.parent]
    output = ["--python_out", tmp_path, "--pyi_out", tmp_path]
    subprocess.run([*protoc, *output, *PROTO.glob("*.proto")], check=True)
    subprocess.run([*protoc, "--grpc_python_out", tmp_path, PROTO / "crossrank_v1.proto"], check=True)
    made = {file.name: file.read_text() for file in (tmp_path / "crossrank_client" / "proto").iterdir()}
    kept = {file.name: file.read_text() for file in PROTO.glob("*_pb2*") if file.suffix in (".py", ".pyi")}
    assert made == kept, "run make proto"


def test_serving_and_the_client_import_no_grpc_unless_it_is_asked_for() -> None:
    code = (
        "import sys, crossrank_client, crossrank_server.commands.serve, crossrank_server.http.app\n"
        "import crossrank_server.http.server, crossrank_server.serving.startup\n"
        "assert 'grpc' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
