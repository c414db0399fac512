"""`auto` always ends in an engine that works, and says once which it passed over and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from crossrank.bundles.bundle import Bundle, load_bundle, sha256_of, write_manifest
from crossrank.engines import select
from crossrank.engines.select import make_engine
from crossrank.errors import EngineFailure, SetupError
from crossrank.native.library import usable_kernels
from crossrank.native.weights import write_arrays

with_avx2 = pytest.mark.skipif("avx2" not in usable_kernels(), reason="the native encoder is not built, or no AVX2")
REPORT = """
import logging, sys
from pathlib import Path
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from crossrank.bundles.bundle import load_bundle
from crossrank.engines.select import make_engine
for _ in range(2):
    print(make_engine(load_bundle(Path(sys.argv[1])), "auto", "fp32", threads=1).name)
"""


def copied(bundle: Bundle, path: Path) -> Path:
    path.mkdir()
    for name in (*bundle.manifest.files, "manifest.json"):
        (path / name).write_bytes(bundle.file(name).read_bytes())
    return path


def rewritten(path: Path, *files: str, **update: object) -> Bundle:
    """Return a bundle whose manifest fits what was changed in it."""
    manifest = load_manifest(path)
    hashes = {**manifest.files, **{name: sha256_of(path / name) for name in files}}
    write_manifest(path, manifest.model_copy(update={"files": hashes, **update}))
    return load_bundle(path)


def load_manifest(path: Path):
    from crossrank.bundles.bundle import Manifest

    return Manifest.model_validate_json((path / "manifest.json").read_bytes())


@pytest.fixture
def wrong_weights(builtin: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that is whole by its hashes, whose native weights are not its graph's."""
    path = copied(builtin, tmp_path / "wrong")
    weights = load_file(path / "weights.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"][::-1]
    write_arrays(path / "weights.safetensors", weights)
    return rewritten(path, "weights.safetensors")


@with_avx2
def test_native_weights_that_are_not_the_graphs_do_not_serve(wrong_weights: Bundle, caplog: pytest.LogCaptureFixture):
    select._say_once.cache_clear()
    with caplog.at_level("INFO", "crossrank"):
        engines = [make_engine(wrong_weights, "auto", "fp32", threads=1) for _ in range(2)]
    assert {engine.name for engine in engines} == {"openvino"}
    (said,) = [message for message in caplog.messages if message.startswith("engine native")]
    assert "weights.safetensors on engine native gives logits" in said
    assert "off those of the bundle's fp32 graph in ONNX Runtime" in said
    for precision in ("fp32", "auto"):
        with pytest.raises(EngineFailure, match="off those of the bundle's fp32 graph"):
            make_engine(wrong_weights, "native", precision, threads=1)


def test_an_engine_that_was_found_to_differ_at_export_is_not_chosen(builtin: Bundle, tmp_path: Path):
    path = copied(builtin, tmp_path / "differs")
    found = {"runtime": "openvino 0", "disagrees": True}
    bundle = rewritten(path, weights=None, engines={"openvino": found})
    assert make_engine(bundle, "auto", "fp32", threads=1).name == "onnxruntime"
    assert make_engine(bundle, "openvino", "fp32", threads=1).name == "openvino"
    agrees = rewritten(path, engines={"openvino": {**found, "disagrees": False}})
    assert make_engine(agrees, "auto", "fp32", threads=1).name == "openvino"


def report(bundle: Bundle, broken: Path, *packages: str) -> list[str]:
    """What a fresh process says and takes, where packages are installed that cannot be imported."""
    for name in packages:
        (broken / name).mkdir(parents=True)
        (broken / name / "__init__.py").write_text(
            "raise ImportError('libtbb.so.12: cannot open shared object file')\n"
        )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(bundle.path)], capture_output=True, text=True, env=env, check=False
    )
    assert "Traceback" not in done.stdout
    return [*done.stdout.splitlines(), *done.stderr.splitlines()[-1:]]


def test_an_engine_whose_installation_is_broken_is_passed_over_and_named_once(builtin: Bundle, tmp_path: Path):
    bundle = rewritten(copied(builtin, tmp_path / "plain"), weights=None)
    native, openvino, *names = report(bundle, tmp_path / "broken", "openvino")
    assert native.startswith("engine native is not used")
    assert openvino == (
        "engine openvino in fp32 is not used: engine openvino cannot be loaded here "
        "(ImportError: libtbb.so.12: cannot open shared object file)"
    )
    assert names == ["onnxruntime", "onnxruntime"]


@with_avx2
def test_without_another_engine_for_the_graph_the_native_one_serves(builtin: Bundle, tmp_path: Path):
    assert report(builtin, tmp_path / "broken", "openvino", "onnxruntime") == ["native", "native"]


def test_only_where_none_is_left_is_the_model_refused_and_all_reasons_are_said(builtin: Bundle, tmp_path: Path):
    bundle = rewritten(copied(builtin, tmp_path / "plain"), weights=None)
    *_, error = report(bundle, tmp_path / "broken", "openvino", "onnxruntime")
    assert "SetupError: no engine of this machine serves crossrank-mini in fp32: " in error
    for name in ("openvino", "onnxruntime"):
        assert f"engine {name} cannot be loaded here (ImportError: libtbb.so.12" in error


def test_a_graph_that_no_engine_loads_names_all_of_them(builtin: Bundle, tmp_path: Path):
    path = copied(builtin, tmp_path / "damaged")
    (path / "model.onnx").write_bytes(b"no graph")
    bundle = rewritten(path, "model.onnx", weights=None)
    with pytest.raises(SetupError) as caught:
        make_engine(bundle, "auto", "fp32", threads=1)
    assert "ONNX Runtime cannot load model.onnx (Protobuf parsing failed.)" in caught.value.message
    assert "OpenVINO cannot load model.onnx (" in caught.value.message


def test_every_engine_is_compared_with_the_source_when_a_bundle_is_written(builtin: Bundle, tmp_path: Path):
    from crossrank_export.pipeline import ExportOptions, export_model
    from crossrank_export.sources import find_source
    from tests.model_layouts import write_onnx

    source = write_onnx(tmp_path / "m", num_labels=2)
    bundle = export_model(find_source(source, kind="onnx"), tmp_path / "bundle", ExportOptions(label=1, documents=2))
    engines = bundle.manifest.engines
    assert {"openvino", "onnxruntime"} <= engines.keys() <= {"native", "openvino", "onnxruntime", "cuda"}
    assert ("native" in engines) == bool(usable_kernels())
    for name, record in engines.items():
        assert record["disagrees"] is False, name
        assert 0 < record["builtin"]["max_abs_delta"] <= 1e-4, name
    assert bundle.manifest.weights is not None
    assert bundle.manifest.weights.read_back
    assert np.isfinite(bundle.manifest.weights.parity["builtin"]["max_abs_delta"])
