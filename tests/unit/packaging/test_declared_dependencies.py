"""What the code imports is what pyproject.toml declares, extra by extra; and what is declared is used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.conftest import ROOT
from tests.projects import CLIENT, PROJECT, requirements

OURS = {"crossrank", "crossrank_server", "crossrank_client", "crossrank_export", "crossrank_perf"}
# Of the standard library from Python 3.14 on.
STANDARD = {*sys.stdlib_module_names, "compression"}


@dataclass(frozen=True)
class Part:
    """A part of a package and what must be installed for it.

    Attributes:
        folder: Where it lies.
        inside: Prefixes of its files, relative to the folder; the first part of a folder that fits a file has it.
        loading: Extras that must be there when its modules are imported; the distribution's dependencies always are.
        running: Extras whose packages its functions may import besides; they say so where these are missing.
        outside: What it may import and no extra installs.
    """

    folder: str
    inside: tuple[str, ...] = ("",)
    loading: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    outside: frozenset[str] = frozenset()


PARTS = (
    # A user of a framework has it; each module is for one.
    Part(
        "server/crossrank", ("integrations/",), outside=frozenset({"haystack", "langchain_core", "llama_index", "mteb"})
    ),
    # Who hands in a module of PyTorch, or asks for a tensor, has it.
    # TensorRT itself comes with NVIDIA's images.
    Part("server/crossrank", running=("openvino", "tensorrt", "triton"), outside=frozenset({"tensorrt", "torch"})),
    Part("server/crossrank_server", ("rpc/",), loading=("server", "grpc")),
    Part("server/crossrank_server", ("telemetry/spans.py",), loading=("server", "otel")),
    # What the command line itself needs: it tells which extra is missing.
    Part("server/crossrank_server", ("__init__.py", "__main__.py", "cli.py", "commands/__init__.py")),
    # `crossrank rerank` serves nobody.
    Part("server/crossrank_server", ("settings.py", "commands/rerank.py", "commands/options.py")),
    Part("server/crossrank_server", loading=("server",), running=("postgresql", "redis", "tls", "otel")),
    Part("client/crossrank_client", ("grpc_", "proto/"), loading=("grpc",)),
    Part("client/crossrank_client"),
    # Triton's Python backend has the module in its own processes.
    Part("export/crossrank_export", ("triton/models/",), outside=frozenset({"triton_python_backend_utils"})),
    Part("export/crossrank_export", ("triton/config.py", "triton/write.py"), loading=("triton",)),
    Part("export/crossrank_export", running=("export", "triton")),
    Part("perf/crossrank_perf", loading=("server", "perf"), running=("grpc", "triton", "suites", "export")),
)
# Used, but not by an import of ours.
INDIRECT = {
    "onnxscript": "torch.onnx.export",
    "redis": "limits, for redis:// addresses",
    "uvloop": "uvicorn, where it is installed",
}


@dataclass(frozen=True)
class Import:
    """One import of a module of others.

    Attributes:
        file: The importing file.
        module: As written, dotted.
        is_lazy: Whether it is not run when the file is: in a function, or for type checkers only.
    """

    file: Path
    module: str
    is_lazy: bool

    @property
    def distribution(self) -> str:
        """Return what installs the module; where that is not installed here, the name that it would most likely have."""
        return owner(self.module)


@cache
def installed() -> Mapping[str, list[str]]:
    """Return the distributions that hold each top-level package."""
    return packages_distributions()


@cache
def files_of(name: str) -> set[str]:
    return {file.as_posix() for file in distribution(name).files or ()}


@cache
def owner(module: str) -> str:
    """Return the canonical name of the distribution that holds a module; several may share its first package."""
    top = module.partition(".")[0]
    owners = sorted(set(installed().get(top, [top])))
    if len(owners) == 1:
        return str(canonicalize_name(owners[0]))
    path = module.replace(".", "/")
    for name in owners:
        if files_of(name) & {f"{path}.py", f"{path}/__init__.py"}:
            return str(canonicalize_name(name))
    # A name inside a module, or a namespace package: what encloses it tells.
    enclosing = module.rpartition(".")[0]
    return owner(enclosing) if "." in enclosing else top


def imports(file: Path) -> Iterator[Import]:
    """Find the imports of others' modules."""

    def walk(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            for name in names:
                if name.partition(".")[0] not in STANDARD | OURS:
                    yield Import(file, name, is_lazy)
            is_type_checking = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from walk(child, is_lazy or is_type_checking or is_function)

    return walk(ast.parse(file.read_text(encoding="utf-8")), False)


def part_of(file: Path) -> Part:
    for part in PARTS:
        folder = ROOT / part.folder
        if file.is_relative_to(folder) and file.relative_to(folder).as_posix().startswith(part.inside):
            return part
    raise AssertionError(f"{file} is in no part")


def declared(part: Part, extras: tuple[str, ...]) -> set[str]:
    project = CLIENT if part.folder.startswith("client/") else PROJECT
    return {str(canonicalize_name(requirement.name)) for requirement in requirements(project, *extras)}


FILES = [
    file for folder in dict.fromkeys(part.folder for part in PARTS) for file in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("package", sorted(OURS))
def test_every_import_is_declared_by_the_distribution_or_an_extra_of_its_part(package: str) -> None:
    undeclared = []
    seen = 0
    for file in FILES:
        if package not in file.relative_to(ROOT).parts:
            continue
        part = part_of(file)
        for found in imports(file):
            seen += 1
            extras = part.loading + (part.running if found.is_lazy else ())
            is_outside = found.module.partition(".")[0] in part.outside
            if not is_outside and found.distribution not in declared(part, extras):
                undeclared.append(f"{file.relative_to(ROOT)}: {found.module} ({found.distribution})")
    assert seen > 10, "no imports were found"
    assert undeclared == []


@pytest.mark.parametrize(
    ("project", "extras"),
    [
        pytest.param(PROJECT, sorted(set(PROJECT["project"]["optional-dependencies"]) - {"dev"}), id="crossrank"),
        pytest.param(CLIENT, sorted(CLIENT["project"]["optional-dependencies"]), id="crossrank-client"),
    ],
)
def test_everything_declared_is_used(project: dict[str, object], extras: list[str]) -> None:
    is_client = project is CLIENT
    used = {
        found.distribution
        for file in FILES
        if file.is_relative_to(ROOT / "client") == is_client
        for found in imports(file)
    }
    names = {str(canonicalize_name(requirement.name)) for requirement in requirements(project, *extras)}
    assert names - used - set(INDIRECT) - {"crossrank", "crossrank-client"} == set()
