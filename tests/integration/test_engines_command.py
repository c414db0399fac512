"""`crossrank engines`: the table with a reason for each line, and which native libraries were built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossrank.engines.candidates import CANDIDATES
from crossrank.native.library import HELPERS, KERNELS, TEST_KERNELS, usable_kernels

with_avx2 = pytest.mark.skipif("avx2" not in usable_kernels(), reason="the native encoder is not built, or no AVX2")


def engines(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crossrank_server", "engines", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def report(*arguments: str, **environment: str) -> dict:
    done = engines(*arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@with_avx2
def test_every_line_of_the_table_is_there_with_a_reason_unless_it_is_taken() -> None:
    found = report()
    assert [(line["engine"], line["precision"]) for line in found["candidates"]] == [
        (candidate.engine, candidate.precision) for candidate in CANDIDATES
    ]
    assert found["taken"]["engine"] == "native"
    taken = found["candidates"].index(found["taken"])
    for number, line in enumerate(found["candidates"]):
        assert bool(line["reason"]) == (number != taken)
        assert line["state"] in ("unfit", "not asked") if number < taken else True
    assert {library["name"] for library in found["libraries"]} == {*KERNELS, *HELPERS} - set(TEST_KERNELS)


def test_without_native_libraries_it_says_that_none_was_built_and_what_serves(tmp_path: Path) -> None:
    found = report("--precision", "fp32", CROSSRANK_NATIVE_DIR=str(tmp_path))
    assert found["taken"]["engine"] == "openvino"
    for library in found["libraries"]:
        assert not library["built"]
        assert library["reason"].startswith(("it was not built", "its instructions are those of x86-64"))


def test_the_choice_is_that_of_the_flags() -> None:
    found = report("--engine", "onnxruntime")
    assert found["taken"]["engine"] == "onnxruntime"
    assert {line["state"] for line in found["candidates"] if line["engine"] != "onnxruntime"} == {"not asked"}


def test_where_nothing_can_serve_nothing_is_taken() -> None:
    found = report("--engine", "onnxruntime", "--precision", "int8")
    assert found["taken"] is None
    (line,) = (line for line in found["candidates"] if line["state"] == "unfit")
    assert line["reason"] == "crossrank-mini has no int8 graph, only fp32: export it with --precision int8"


def test_for_people_it_is_a_table() -> None:
    done = engines()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("crossrank-mini on ")
    assert lines[2].split() == ["engine", "precision", "kernel"]
    assert [line.split()[0] for line in lines if "taken: " in line] == [report()["taken"]["engine"]]
    assert any(line.split()[:2] == ["native", "library"] for line in lines)
