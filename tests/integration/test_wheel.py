"""The wheels of both distributions hold exactly their packages and data, and work with what they declare alone."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.native.library import ANYWHERE, KERNELS, TEST_KERNELS, usable_kernels
from tests.conftest import ROOT
from tests.engine_bundle import write_fp16_bundle
from tests.fresh_environment import FreshEnvironment, read_metadata

CLIENT = {"crossrank_client": ROOT / "client" / "crossrank_client"}
PACKAGES = {
    name: ROOT / folder / name
    for folder, name in [
        ("server", "crossrank"),
        ("server", "crossrank_server"),
        ("export", "crossrank_export"),
        ("perf", "crossrank_perf"),
    ]
}
COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", "build", "dist")
FRAMEWORKS = ("torch", "transformers", "tensorrt", "optimum", "triton")
THREE_LINES = """
from crossrank import CrossEncoder

encoder = CrossEncoder("builtin")
ranking = encoder.rank("How many people live in Berlin?", ["Berlin has museums.", "Berlin has 3,520,031 inhabitants."])
assert [result["corpus_id"] for result in ranking] == [1, 0], ranking
"""


def build(tree: Path, project: Path, **environment: str) -> Path:
    """Build the wheel of a project in a copy of the tree."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(project)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    (path,) = (tree / "dist").glob("*.whl")
    return path


def copy_tree(tree: Path) -> None:
    """Copy what the wheel of the library and the server is built from, without leftovers of other builds."""
    for name in ("server", "export", "perf"):
        shutil.copytree(ROOT / name, tree / name, ignore=COPIED)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    copy_tree(tree)
    return build(tree, tree)


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "client", tree / "client", ignore=COPIED)
    return build(tree, tree / "client")


@pytest.fixture(scope="module")
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    return FreshEnvironment(tmp_path_factory.mktemp("library"), wheel)


@pytest.fixture(scope="module")
def client(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    return FreshEnvironment(tmp_path_factory.mktemp("client"), client_wheel)


@pytest.fixture(scope="module")
def server(wheel: Path, client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    return FreshEnvironment(tmp_path_factory.mktemp("server"), wheel, client_wheel, extras=("server",))


def is_native_source(file: Path) -> bool:
    """Whether it is compiled, was compiled in this tree, or explains it."""
    return file.parent.name == "native" and file.suffix in (".cpp", ".h", ".md", ".so")


def expected_files(packages: dict[str, Path]) -> set[str]:
    return {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in packages.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not is_native_source(file)
    }


def packed_files(wheel: Path) -> set[str]:
    return {
        name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name and not name.endswith(".so")
    }


def test_a_wheel_holds_exactly_the_packages_and_their_data(wheel: Path) -> None:
    packed = packed_files(wheel)
    assert packed == expected_files(PACKAGES)
    assert {
        "crossrank/py.typed",
        "crossrank_server/py.typed",
        "crossrank/bundles/builtin/manifest.json",
        "crossrank_server/http/page/index.html",
    } <= packed
    assert (ROOT / "perf" / "lab" / "__main__.py").is_file(), "the laboratory is in the checkout"
    assert not [name for name in packed if name.startswith("lab/")], "and not in the wheel"


def test_the_clients_wheel_holds_the_client_and_fits_every_platform(client_wheel: Path) -> None:
    packed = packed_files(client_wheel)
    assert packed == expected_files(CLIENT)
    assert {"crossrank_client/py.typed", "crossrank_client/proto/crossrank_v1.proto"} <= packed
    assert client_wheel.name.endswith("-py3-none-any.whl")


def test_both_distributions_have_one_version_and_the_server_requires_that_of_the_client(
    wheel: Path, client_wheel: Path
) -> None:
    library, client = read_metadata(wheel), read_metadata(client_wheel)
    assert library["Version"] == client["Version"]
    lines = [
        line.replace(" ", "") for line in library.get_all("Requires-Dist", []) if line.startswith("crossrank-client")
    ]
    version = client["Version"]
    assert {line.partition(";")[0] for line in lines} == {
        f"crossrank-client=={version}",
        f"crossrank-client[grpc]=={version}",
    }


@pytest.mark.skipif(not usable_kernels(), reason="no C++ compiler")
def test_a_wheel_holds_every_native_library_and_fits_every_python(wheel: Path) -> None:
    libraries = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    x86 = platform.machine() == "x86_64"
    kernels = [name for name in KERNELS if name not in TEST_KERNELS and (x86 or name in ANYWHERE)]
    assert libraries == {f"crossrank/native/_{name}.abi3.so" for name in ("wordpiece", "padding", *kernels)}
    assert "-cp310-abi3-linux_" in wheel.name


def test_a_wheel_is_built_without_a_compiler_too(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    names = zipfile.ZipFile(build(tmp_path, tmp_path, CC="/nonexistent/cc", CXX="/nonexistent/c++")).namelist()
    assert "crossrank/native/library.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_wheels_carry_the_licence_and_the_command(wheel: Path, client_wheel: Path) -> None:
    for path in (wheel, client_wheel):
        archive = zipfile.ZipFile(path)
        (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert b"crossrank = crossrank_server.cli:main" in archive.read(entry_points)


def test_the_library_requires_neither_a_framework_nor_a_server(library: FreshEnvironment) -> None:
    assert {"numpy", "tokenizers", "onnxruntime"} <= library.installed
    servers = ("fastapi", "starlette", "uvicorn", "sqlalchemy", "crossrank-client", "grpcio")
    assert not [name for name in library.installed if name.startswith((*FRAMEWORKS, *servers))]


def test_the_client_requires_no_engine(client: FreshEnvironment) -> None:
    assert "httpx" in client.installed
    assert not [name for name in client.installed if name.startswith(("numpy", "onnx", "tokenizers", *FRAMEWORKS))]


def test_the_server_requires_no_framework(server: FreshEnvironment) -> None:
    assert {"fastapi", "crossrank-client"} <= server.installed
    assert not [name for name in server.installed if name.startswith(FRAMEWORKS)]


def test_three_lines_rank_with_the_library_alone(library: FreshEnvironment, tmp_path: Path) -> None:
    done = library.run("-c", THREE_LINES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_command_ranks_with_the_library_alone(library: FreshEnvironment, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("Berlin has museums.\nBerlin has 3,520,031 inhabitants.\n")
    words = ("rerank", "--query", "How many people live in Berlin?", "--top-n", "1", "texts.txt")
    done = library.run("-m", "crossrank_server", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "texts.txt:2"


def test_plans_are_built_by_what_one_extra_installs(wheel: Path, builtin: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    environment = FreshEnvironment(tmp_path / "environment", wheel, extras=("tensorrt",))
    assert not environment.installed & {"torch", "transformers", "optimum"}
    write_fp16_bundle(builtin, tmp_path / "b")
    command = ("-m", "crossrank_server", "engine", "b", "--gpu")
    built = environment.run(*command, "l4", "--gpu", "a100", "--gpu", "t4", cwd=tmp_path)
    assert (built.returncode, built.stderr) == (0, "")
    (plan,) = (tmp_path / "b").glob("*.plan")
    assert f"built b/{plan.name}: " in built.stdout
    refused = environment.run(*command, "v100", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "it takes TensorRT 10.4, the last that supports it" in refused.stderr
    (container,) = [line for line in refused.stderr.splitlines() if line.startswith("  docker run ")]
    inside = "pip install -q crossrank==0.1.0 'cuda-bindings>=12.9,<13' && crossrank engine /bundle --gpu v100 "
    assert shlex.split(container)[-1].startswith(inside)


def test_every_module_of_the_library_is_there_without_the_server(library: FreshEnvironment, tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, crossrank\n"
        "for found in pkgutil.walk_packages(crossrank.__path__, 'crossrank.'):\n"
        "    if not found.name.rpartition('.')[2].startswith('_') and '.integrations.' not in found.name:\n"
        "        importlib.import_module(found.name)\n"
    )
    done = library.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["serve"], "server"), (["keys", "list"], "server"), (["serve", "--help"], "server"), (["bench", "load"], "perf")],
    ids=["serve", "keys list", "serve --help", "bench load"],
)
def test_a_command_without_its_packages_names_the_extra_in_one_line(
    library: FreshEnvironment, tmp_path: Path, words: list[str], extra: str
) -> None:
    done = library.run("-m", "crossrank_server", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: crossrank {words[0]} needs ")
    assert line.endswith(f": pip install 'crossrank[{extra}]'")


def test_the_list_of_commands_is_whole_without_the_server(library: FreshEnvironment, tmp_path: Path) -> None:
    done = library.run("-m", "crossrank_server", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pip install 'crossrank[server]'" in done.stdout
    assert {"serve", "rerank", "engines", "export", "bench"} <= {
        line.split()[0] for line in done.stdout.splitlines() if line.strip()
    }


def test_the_client_alone_is_imported_and_says_what_grpc_needs(client: FreshEnvironment, tmp_path: Path) -> None:
    code = (
        "from crossrank_client import Client, ConnectionFailed\n"
        "try:\n"
        "    Client('http://127.0.0.1:9', max_retries=0).rerank('q', ['d'])\n"
        "except ConnectionFailed:\n"
        "    print('asked')\n"
        "Client('grpc://127.0.0.1:9')\n"
    )
    done = client.run("-c", code, cwd=tmp_path)
    assert done.stdout == "asked\n"
    assert done.stderr.splitlines()[-1].endswith("pip install 'crossrank-client[grpc]'")


def test_serving_imports_no_framework_and_nothing_undeclared(server: FreshEnvironment, tmp_path: Path) -> None:
    code = (
        "import sys, crossrank_server.http, crossrank_server.serving.startup, crossrank_server.commands.serve\n"
        "heavy = {'torch', 'transformers', 'tensorrt', 'optimum', 'crossrank_export', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = server.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = server.run("-m", "crossrank_server", "serve", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
