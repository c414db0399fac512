"""A wheel holds exactly the four packages with their data: nothing missing, nothing else."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from crossrank.native.library import ANYWHERE, KERNELS, TEST_KERNELS, usable_kernels
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


def build(tree: Path, **environment: str) -> zipfile.ZipFile:
    """The wheel of a copy of the tree, so that no build leftovers get in."""
    for name in ("server", "client", "export", "perf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    (path,) = (tree / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(tmp_path_factory.mktemp("tree"))


def test_a_wheel_holds_exactly_the_packages_and_their_data(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not is_native_source(file)
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name and not name.endswith(".so")}
    assert packed == expected
    assert {
        "crossrank_server/py.typed",
        "crossrank/bundles/builtin/manifest.json",
        "crossrank_server/http/page/index.html",
    } <= packed
    assert (ROOT / "perf" / "lab" / "__main__.py").is_file(), "the laboratory is in the checkout"
    assert not [name for name in packed if name.startswith("lab/")], "and not in the wheel"


def is_native_source(file: Path) -> bool:
    """Whether it is compiled, was compiled in this tree, or explains it."""
    return file.parent.name == "native" and file.suffix in (".cpp", ".h", ".md", ".so")


@pytest.mark.skipif(not usable_kernels(), reason="no C++ compiler")
def test_a_wheel_holds_every_native_library_and_fits_every_python(wheel: zipfile.ZipFile) -> None:
    libraries = {name for name in wheel.namelist() if name.endswith(".so")}
    x86 = platform.machine() == "x86_64"
    kernels = [name for name in KERNELS if name not in TEST_KERNELS and (x86 or name in ANYWHERE)]
    assert libraries == {f"crossrank/native/_{name}.abi3.so" for name in ("wordpiece", "padding", *kernels)}
    assert "-cp310-abi3-linux_" in str(wheel.filename)


def test_a_wheel_is_built_without_a_compiler_too(tmp_path: Path) -> None:
    wheel = build(tmp_path, CC="/nonexistent/cc", CXX="/nonexistent/c++")
    names = wheel.namelist()
    assert "crossrank/native/library.py" in names
    assert not [name for name in names if name.endswith(".so")]


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
        "import sys, crossrank_server.http, crossrank_server.serving.startup, crossrank_server.commands.serve\n"
        "heavy = {'torch', 'transformers', 'tensorrt', 'optimum', 'crossrank_export', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path("/"))
