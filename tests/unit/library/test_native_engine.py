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
from crossrank.engines import native, select
from crossrank.engines.cpu import has_bf16
from crossrank.engines.native import NativeEngine, native_kernel, precision_of
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.select import make_engine
from crossrank.errors import BundleError, EngineFailure, SetupError
from crossrank.native.library import library_path, usable_kernels
from crossrank.native.weights import OFFERED, WORD, Shape, offered_kernels, read_weights
from crossrank.packed import PairBatch
from tests.conftest import ROOT
from tests.native_models import each_kernel

NATIVE = ROOT / "server" / "crossrank" / "native"
built = pytest.mark.skipif(not usable_kernels(), reason="the native encoder was not built: no C++ compiler")
with_avx2 = pytest.mark.skipif("avx2" not in usable_kernels(), reason="no AVX2")

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


@built
def test_the_kernel_fits_the_precision() -> None:
    usable = usable_kernels()
    assert native_kernel("bf16") == next((name for name in ("amx", "avx512_bf16") if name in usable), None)
    assert native_kernel("fp32") == next(name for name in ("avx512", "avx2", "portable") if name in usable)


@with_avx2
def test_auto_takes_the_native_engine_in_fp32_where_there_is_avx2(builtin: Bundle) -> None:
    engine = make_engine(builtin, "auto", "fp32", threads=1)
    assert (engine.name, engine.precision) == ("native", "fp32")


@built
def test_what_the_native_engine_cannot_do_is_said(builtin: Bundle) -> None:
    with pytest.raises(SetupError, match="engine native serves fp32 and bf16, not int8"):
        make_engine(builtin, "native", "int8")
    with pytest.raises(SetupError, match=r"\(384, 12\)\], not bert of \(768, 12\): use --engine openvino"):
        make_engine(shaped(builtin, 768), "native")
    if native_kernel("bf16") is None:
        with pytest.raises(SetupError, match="this CPU has neither AMX nor AVX-512 BF16"):
            make_engine(builtin, "native", "bf16")


def test_a_shape_is_offered_with_the_kernels_that_were_measured(builtin: Bundle) -> None:
    assert {"avx512", "avx2", "avx512_bf16", "amx"} <= set(offered_kernels(builtin.manifest.architecture))
    for hidden in (312, 384):
        offered = offered_kernels(shaped(builtin, hidden).manifest.architecture)
        assert "avx512_bf16" in offered
        assert "amx" not in offered
    assert offered_kernels(shaped(builtin, 768).manifest.architecture) == ()


@pytest.mark.skipif(native_kernel("bf16") != "amx", reason="no AMX")
def test_a_shape_that_was_not_measured_with_this_cpus_kernel_is_refused(builtin: Bundle) -> None:
    with pytest.raises(
        SetupError, match="size 384 in bf16 on this CPU: it was not measured faster with its kernel amx"
    ):
        make_engine(shaped(builtin, 384), "native", "bf16")


@pytest.fixture
def no_amx_for_it(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A model that is not offered with AMX, on this CPU as if it had AMX."""
    offered = {key: tuple(name for name in names if name != "amx") for key, names in OFFERED.items()}
    for key, names in offered.items():
        monkeypatch.setitem(OFFERED, key, names)
    pretend_kernels(monkeypatch, *usable_kernels(), "amx")
    monkeypatch.setattr(select, "has_bf16", lambda: True)
    return builtin


def pretend_kernels(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for module in (native, select):
        monkeypatch.setattr(module, "usable_kernels", lambda: names)


@with_avx2
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_without_openvino_another_kernel_serves_a_model_that_amx_is_not_offered_for(
    precision: str, no_amx_for_it: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if "avx512_bf16" not in usable_kernels():
        pytest.skip("no AVX-512 BF16")
    monkeypatch.setattr(select, "_openvino_installed", lambda: False)
    select._say_once.cache_clear()
    with caplog.at_level("INFO", "crossrank"):
        for _ in range(2):
            engine = make_engine(no_amx_for_it, "auto", precision, threads=1)
            assert (engine.name, engine.precision) == ("native", "bf16")
    (message,) = [message for message in caplog.messages if message.startswith("engine native")]
    assert "in bf16 with its kernel avx512_bf16: it was not measured with kernel amx" in message


@with_avx2
def test_without_openvino_and_without_another_bf16_kernel_fp32_serves(
    no_amx_for_it: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_openvino_installed", lambda: False)
    for bf16 in (["amx"], []):  # of another model's, and none that is built
        pretend_kernels(monkeypatch, *(name for name in usable_kernels() if precision_of(name) == "fp32"), *bf16)
        engine = make_engine(no_amx_for_it, threads=1)
        assert (engine.name, engine.precision) == ("native", "fp32")
    # Asked for, bf16 is not replaced by fp32.
    with pytest.raises(SetupError, match="engine onnxruntime has no bf16 on CPUs"):
        make_engine(no_amx_for_it, "auto", "bf16", threads=1)


@pytest.mark.skipif(not has_bf16(), reason="no AMX, no AVX-512 BF16")
def test_with_openvino_it_serves_a_model_that_amx_is_not_offered_for(no_amx_for_it: Bundle) -> None:
    engine = make_engine(no_amx_for_it, threads=1)
    assert (engine.name, engine.precision) == ("openvino", "bf16")


@pytest.mark.skipif(native_kernel("bf16") is None, reason="no AMX, no AVX-512 BF16")
def test_auto_takes_the_native_engine_in_bf16_where_it_has_a_kernel(builtin: Bundle) -> None:
    for engine in (make_engine(builtin, threads=1), make_engine(builtin, "native", threads=1)):
        assert (engine.name, engine.precision) == ("native", "bf16")


@with_avx2
def test_a_bundle_without_weights_is_served_by_another_engine(builtin: Bundle) -> None:
    old = Bundle(builtin.path, builtin.manifest.model_copy(update={"weights": None}))
    assert make_engine(old, "auto", "fp32", threads=1).name == "openvino"
    with pytest.raises(BundleError, match="holds no weights by role, which engine native reads: use another engine"):
        make_engine(old, "native", "fp32")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"positions": 100}, r"embeddings.position is float32 \[512, 128\], not float32 \[100, 128\]"),
        ({"segments": 3}, r"embeddings.segment is float32 \[2, 128\]"),
        ({"shared": {}}, "roles are missing or unknown: embeddings.word"),
        ({"shared": {WORD: SharedTensor(file="model.onnx", offset=17_000_000)}}, "cannot reshape"),
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
    command = ["g++", *flags, str(source / "api.cpp"), "-o", str(tmp_path / f"_avx2{suffix}")]
    subprocess.run(command, check=True)
    portable = library_path("portable")
    assert portable is not None
    shutil.copy(portable, tmp_path / f"_portable{suffix}")
    first, *names = report(tmp_path)
    assert "kernel avx2 of engine native gives logits" in first
    assert "off the portable kernel's on this CPU" in first
    assert names == ["openvino", "openvino"]
