"""A wheel holds exactly the four packages with their data: nothing missing, nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = {
    name: ROOT / folder / name
    for folder, name in [
        ("server", "crossrank_server"),
        ("client", "crossrank_client"),
        ("export", "crossrank_export"),
        ("perf", "crossrank_perf"),
    ]
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the tree, so that no build leftovers get in."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("server", "client", "export", "perf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_a_wheel_holds_exactly_the_packages_and_their_data(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {
        "crossrank_server/py.typed",
        "crossrank_server/builtin/manifest.json",
        "crossrank_server/http/page/index.html",
    } <= packed


def test_a_wheel_carries_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    (licence,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"crossrank = crossrank_server.cli:main" in wheel.read(entry_points)


def test_serving_needs_no_training_or_gpu_framework(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    required = [line.split(";")[0] for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert required
    assert not [
        line for line in required if line.startswith(("torch", "transformers", "tensorrt", "optimum", "triton"))
    ]


def test_serving_imports_no_training_or_gpu_framework() -> None:
    code = (
        "import sys, crossrank_server.http, crossrank_server.startup, crossrank_server.commands.serve\n"
        "heavy = {'torch', 'transformers', 'tensorrt', 'optimum', 'crossrank_export', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path("/"))
