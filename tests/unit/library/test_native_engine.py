"""Engine `native` behind the seam: which kernel serves, and what serves where it cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle, SharedTensor
from crossrank.engines.native import NativeEngine, precision_of
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.select import make_engine
from crossrank.errors import BundleError, EngineFailure, SetupError
from crossrank.native.interface import INTERFACE
from crossrank.native.library import library_path, usable_kernels
from crossrank.native.weights import WORD, Shape, read_weights
from crossrank.packed import PairBatch
from tests.conftest import ROOT
from tests.native_models import each_kernel

NATIVE = ROOT / "server" / "crossrank" / "native"
built = pytest.mark.skipif(not usable_kernels(), reason="the native encoder was not built: no C++ compiler")
with_avx2 = pytest.mark.skipif("avx2" not in usable_kernels(), reason="no AVX2")


def fastest_bf16() -> str | None:
    return next((name for name in ("amx", "avx512_bf16") if name in usable_kernels()), None)


REPORT = """
import logging, sys
from pathlib import Path
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from crossrank.bundles.bundle import load_bundle
from crossrank.engines.select import make_engine
bundle = load_bundle(Path("server/crossrank/bundles/builtin"))
for _ in range(2):
    print(make_engine(bundle, "auto", "fp32", threads=1).name)
"""


def changed(bundle: Bundle, **weights: object) -> Bundle:
    assert bundle.manifest.weights is not None
    record = bundle.manifest.weights.model_copy(update=weights)
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"weights": record}))


def read(bundle: Bundle) -> tuple[Shape, dict[str, np.ndarray]]:
    assert bundle.manifest.weights is not None
    return read_weights(bundle.path, bundle.manifest.weights, bundle.manifest.architecture)


def shaped(bundle: Bundle, hidden: int) -> Bundle:
    sizes = bundle.manifest.architecture.model_copy(update={"hidden": hidden, "heads": 12})
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"architecture": sizes}))


def pairs(bundle: Bundle, *lengths: int) -> PairBatch:
    rng = np.random.default_rng(5)
    total = sum(lengths)
    return PairBatch(
        rng.integers(0, bundle.manifest.architecture.vocab_size, total, np.int32),
        rng.integers(0, 2, total, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def report(native_dir: Path) -> list[str]:
    """What a fresh process says and takes for `auto`, twice, with the libraries of that directory."""
    environment = {"CROSSRANK_NATIVE_DIR": str(native_dir), "PYTHONPATH": str(ROOT / "server"), "PATH": ""}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@built
@pytest.mark.parametrize("kernel", each_kernel())
async def test_every_kernel_serves_the_built_in_model_as_onnx_runtime_does(builtin: Bundle, kernel: str) -> None:
    engine = NativeEngine(builtin, kernel, threads=2)
    assert engine.precision == precision_of(kernel) == ("bf16" if kernel.startswith(("amx", "avx512_bf16")) else "fp32")
    batch = pairs(builtin, 3, 64, 100, 7)
    expected = OnnxRuntimeEngine(builtin, threads=1).infer(batch)
    limit = 0.05 if engine.precision == "bf16" else 1e-4
    engine.warm_up()
    np.testing.assert_allclose(await engine.score(batch), expected, atol=limit, rtol=0)
    assert engine.ready()
    await engine.close()
    assert not engine.ready()


@built
def test_a_batch_that_the_encoder_refuses_is_an_engine_failure(builtin: Bundle) -> None:
    engine = NativeEngine(builtin, "portable", threads=1)
    with pytest.raises(EngineFailure, match="a pair has 1 to 512 tokens"):
        engine.infer(pairs(builtin, 3, 513))


@with_avx2
def test_auto_takes_the_native_engine_in_fp32_where_there_is_avx2(builtin: Bundle) -> None:
    engine = make_engine(builtin, "auto", "fp32", threads=1)
    assert (engine.name, engine.precision) == ("native", "fp32")


@pytest.mark.skipif(fastest_bf16() is None, reason="no AMX, no AVX-512 BF16")
def test_auto_takes_the_native_engine_in_bf16_where_it_has_a_kernel(builtin: Bundle) -> None:
    for engine in (make_engine(builtin, threads=1), make_engine(builtin, "native", threads=1)):
        assert (engine.name, engine.precision) == ("native", "bf16")


@built
def test_what_the_native_engine_cannot_do_is_said(builtin: Bundle) -> None:
    with pytest.raises(SetupError, match=r"engine native serves fp32 and bf16, not int8.*--engine onnxruntime"):
        make_engine(builtin, "native", "int8")
    with pytest.raises(SetupError, match=r"\(384, 12\)\], not bert of \(768, 12\); --engine auto"):
        make_engine(shaped(builtin, 768), "native")
    if fastest_bf16() is None:
        with pytest.raises(SetupError, match="this CPU, or its system, has no AVX-512 BF16"):
            make_engine(builtin, "native", "bf16")


@with_avx2
def test_a_bundle_without_weights_is_served_by_another_engine(builtin: Bundle) -> None:
    old = Bundle(builtin.path, builtin.manifest.model_copy(update={"weights": None}))
    assert make_engine(old, "auto", "fp32", threads=1).name == "openvino"
    with pytest.raises(SetupError, match="holds no weights by role, which engine native reads: export the model again"):
        make_engine(old, "native", "fp32")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"positions": 100}, r"embeddings.position is float32 \[512, 128\], not float32 \[100, 128\]"),
        ({"segments": 3}, r"embeddings.segment is float32 \[2, 128\]"),
        ({"shared": {}}, "roles are missing or unknown: embeddings.word"),
        ({"shared": {WORD: SharedTensor(file="model.onnx", offset=17_000_000)}}, "ends at byte 32627264 of"),
        ({"shared": {"no.role": SharedTensor(file="model.onnx", offset=0)}}, "embeddings.word, no.role"),
        ({"file": "tokenizer.json"}, "tokenizer.json does not fit the manifest"),
        ({"file": "absent.safetensors"}, "absent.safetensors does not fit the manifest"),
    ],
)
def test_weights_that_do_not_fit_their_manifest_are_refused(
    builtin: Bundle, weights: dict[str, object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        read(changed(builtin, **weights))


@built
def test_a_window_beyond_the_positions_is_refused(builtin: Bundle) -> None:
    wide = Bundle(builtin.path, builtin.manifest.model_copy(update={"max_length": 513}))
    with pytest.raises(BundleError, match="max_length 513 is over the 512 positions"):
        NativeEngine(wide, "portable")


def test_without_a_compiled_encoder_another_engine_serves_and_that_is_said_once(tmp_path: Path) -> None:
    first, *names = report(tmp_path)
    assert first.startswith("engine native is not used: it was not built")
    assert names == ["openvino", "openvino"]


@with_avx2
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_kernel_that_computes_something_else_does_not_serve(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(NATIVE, source, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    text = (source / "elementwise.h").read_text()
    assert text.count("inside[m] * p[m]") == 1
    (source / "elementwise.h").write_text(text.replace("inside[m] * p[m]", "1.01f * inside[m] * p[m]"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-mavx2", "-mfma", "-ffp-contract=fast"]
    defined = f'-DCROSSRANK_INTERFACE="{INTERFACE}"'
    command = ["g++", *flags, defined, str(source / "api.cpp"), "-o", str(tmp_path / f"_avx2{suffix}")]
    subprocess.run(command, check=True)
    portable = library_path("portable")
    assert portable is not None
    shutil.copy(portable, tmp_path / f"_portable{suffix}")
    first, *names = report(tmp_path)
    assert "kernel avx2 of engine native gives logits" in first
    assert "off the portable kernel's on this CPU" in first
    assert names == ["openvino", "openvino"]
