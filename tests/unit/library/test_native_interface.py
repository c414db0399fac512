"""A native library of other declarations than Python's is never called: it is named, and something else serves."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crossrank.native.interface import HEADERS, INTERFACE, interface_of
from crossrank.native.library import NativeError, library_path, open_library
from tests.conftest import ROOT

NATIVE = ROOT / "server" / "crossrank" / "native"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
with_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

REPORT = """
import logging, sys
from pathlib import Path
import numpy as np
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from crossrank.bundles.bundle import load_bundle
from crossrank.engines.select import make_engine
from crossrank.native.library import usable_kernels
from crossrank.native.padding import pad
from crossrank.packed import PairBatch
from crossrank.text.tokenizer import TextTokenizer
bundle = load_bundle(Path("server/crossrank/bundles/builtin"))
tokens = TextTokenizer(bundle.file("tokenizer.json")).tokenize(["Unaffable cafés."], 500)
batch = PairBatch(tokens.ids, np.zeros_like(tokens.ids), tokens.offsets)
print(usable_kernels(), tokens.ids.tolist(), pad(batch, 9, 0)[0].tolist())
print(make_engine(bundle, "auto", "fp32", threads=1).name)
"""


def report(directory: Path | None) -> list[str]:
    """What a fresh process says, tokenizes, pads and chooses with the libraries of a directory."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "CROSSRANK_NATIVE_DIR": str(directory or "")}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def of_another_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries of a version whose functions take an argument more, in front."""
    tree = tmp_path_factory.mktemp("other")
    sources = tree / "sources"
    shutil.copytree(NATIVE, sources, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("padding.h", "padding.cpp"):
        text = (sources / name).read_text()
        assert text.count("crossrank_pad(const int32_t* ids") == 1
        (sources / name).write_text(
            text.replace("crossrank_pad(const int32_t* ids", "crossrank_pad(int64_t version, const int32_t* ids")
        )
    hashed = interface_of(sources)
    assert hashed != INTERFACE
    for library, files in {
        "padding": ["padding.cpp"],
        "wordpiece": ["wordpiece.cpp"],
        "portable": ["api.cpp", "cpu.cpp"],
    }.items():
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f'-DCROSSRANK_INTERFACE="{hashed}"']
        paths = [str(sources / file) for file in files]
        subprocess.run(["g++", *flags, *paths, "-o", str(tree / f"_{library}{SUFFIX}")], check=True)
    return tree


@with_compiler
def test_libraries_of_another_version_are_not_called_and_the_remedy_is_said(of_another_version: Path) -> None:
    tokenizer, found, native, engine = report(of_another_version)
    own = report(None)[0]
    # The same ids and tensors, without any native kernel.
    assert found.startswith("()")
    assert found.partition(")")[2] == own.partition(")")[2]
    assert engine == "openvino"
    assert tokenizer.startswith("the native tokenizer is not used, and texts are tokenized more slowly: ")
    assert native.startswith("engine native is not used: ")
    for message in (tokenizer, native):
        assert f"is of another version (its interface is {interface_of(of_another_version / 'sources')}" in message
        assert "run `make native`, or install crossrank anew" in message


@with_compiler
def test_a_library_from_before_there_was_a_hash_is_not_called(tmp_path: Path) -> None:
    (tmp_path / "old.cpp").write_text('extern "C" bool crossrank_cpu_runs(const char*) { __builtin_trap(); }')
    command = ["g++", "-shared", "-fPIC", str(tmp_path / "old.cpp"), "-o", str(tmp_path / f"_portable{SUFFIX}")]
    subprocess.run(command, check=True)
    native = next(line for line in report(tmp_path) if line.startswith("engine native"))
    assert "its interface is none" in native


def test_python_states_the_interface_of_the_headers() -> None:
    assert interface_of(NATIVE) == INTERFACE
    exporting = {path.name for path in NATIVE.glob("*.h") if "\nCROSSRANK_API" in path.read_text()}
    assert exporting == {*HEADERS, "interface.h"}
    assert not [path.name for path in NATIVE.glob("*.cpp") if "CROSSRANK_API" in path.read_text()]


def test_comments_and_spaces_are_no_part_of_the_interface_and_declarations_are(tmp_path: Path) -> None:
    for name in HEADERS:
        shutil.copy(NATIVE / name, tmp_path)
    header = tmp_path / "api.h"
    text = header.read_text()
    header.write_text(f"// New words.\n/* and\n more */\n\n{text}".replace("int64_t tokens,", "int64_t   tokens,"))
    assert interface_of(tmp_path) == INTERFACE
    header.write_text(text.replace("  float epsilon;", "  double epsilon;"))
    assert interface_of(tmp_path) != INTERFACE


def test_a_build_with_other_headers_than_pythons_is_refused_with_the_new_hash(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    target = tmp_path / "server" / "crossrank" / "native"
    shutil.copytree(NATIVE, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    header = target / "api.h"
    header.write_text(header.read_text().replace("  float epsilon;", "  double epsilon;"))
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f'INTERFACE = "{interface_of(target)}"' in done.stderr


def test_a_library_that_is_cut_off_is_refused_before_it_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = library_path("portable")
    assert whole is not None
    monkeypatch.setattr("crossrank.native.library.library_path", lambda name: tmp_path / whole.name)
    for size in (3000, whole.stat().st_size - 1):
        (tmp_path / whole.name).write_bytes(whole.read_bytes()[:size])
        with pytest.raises(NativeError, match="cut off"):
            open_library("portable")
