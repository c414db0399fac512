"""The table of candidates: what it leaves in, what each line needs, and that one installation does not change another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from crossrank.bundles.bundle import Architecture, Bundle
from crossrank.engines import candidates, select
from crossrank.engines.candidates import CANDIDATES, Candidate, Fault, considered, device_of, precisions_of
from crossrank.engines.names import CPU_ENGINES, DEVICES, EMBEDDED_ENGINES, ENGINES, PRECISIONS
from crossrank.engines.native import KernelFault
from crossrank.engines.select import choose_engine, make_engine
from crossrank.errors import BundleError, CrossrankError, EngineFailure, SetupError
from crossrank.native.library import KERNELS, usable_kernels
from crossrank_server.settings import ServeSettings

ZEN_5 = {"avx512", "avx2", "avx512_bf16", "portable"}
XEON_WITH_AMX = {*ZEN_5, "amx"}
FLAGS = {"amx": "amx_bf16", "avx512_bf16": "avx512_bf16"}
MINILM = (384, 12)


def of_shape(bundle: Bundle, hidden: int, heads: int, model_type: str = "bert") -> Bundle:
    sizes = Architecture(
        **{**dict(bundle.manifest.architecture), "hidden": hidden, "heads": heads, "model_type": model_type}
    )
    return Bundle(bundle.path, bundle.manifest.model_copy(update={"architecture": sizes}))


def pretend(monkeypatch: pytest.MonkeyPatch, kernels: set[str], *, openvino: bool, cuda: bool = False) -> None:
    """Let the table believe in a CPU and an installation; no engine is loaded."""
    monkeypatch.setattr(candidates, "kernel_fault", lambda kernel: "" if kernel in kernels else "not on this CPU")
    monkeypatch.setattr(candidates, "cpu_flags", lambda: {FLAGS[kernel] for kernel in kernels if kernel in FLAGS})
    monkeypatch.setattr(candidates, "cuda_installed", lambda: cuda)
    monkeypatch.setattr(candidates.importlib.util, "find_spec", lambda name: name if openvino else None)


def usable(bundle: Bundle, engine: str = "auto", precision: str = "auto") -> list[str]:
    """The lines that may serve, in order."""
    lines = considered(engine, precision)  # type: ignore[arg-type]
    return [f"{line.engine} {line.precision} {line.kernel}".strip() for line in lines if line.fault(bundle) is None]


@pytest.mark.parametrize("kernels", [ZEN_5, XEON_WITH_AMX], ids=["zen-5", "amx"])
@pytest.mark.parametrize("shape", [(128, 2), MINILM], ids=["tinybert-l2", "minilm"])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_installing_openvino_changes_no_native_kernel(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch, kernels: set[str], shape: tuple[int, int], precision: str
) -> None:
    bundle = of_shape(builtin, *shape)
    pretend(monkeypatch, kernels, openvino=False)
    without = usable(bundle, "auto", precision)
    pretend(monkeypatch, kernels, openvino=True)
    with_it = usable(bundle, "auto", precision)
    assert [line for line in with_it if not line.startswith("openvino")] == without
    assert usable(bundle, "native", precision)[0] == next(line for line in without if line.startswith("native"))


def test_the_order_on_the_cpus_that_were_measured(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ZEN_5, openvino=True)
    assert usable(of_shape(builtin, *MINILM)) == [
        "native bf16 avx512_bf16",
        "openvino bf16 avx512_bf16",
        "native fp32 avx512",
        "native fp32 avx2",
        "openvino fp32",
        "onnxruntime fp32",
    ]
    pretend(monkeypatch, XEON_WITH_AMX, openvino=True)
    assert usable(builtin)[0] == "native bf16 amx"
    assert usable(of_shape(builtin, *MINILM))[:2] == ["openvino bf16 amx", "native bf16 avx512_bf16"]
    pretend(monkeypatch, {"avx2", "portable"}, openvino=True)
    assert usable(builtin) == ["native fp32 avx2", "openvino fp32", "onnxruntime fp32"]
    # As on ARM: the portable kernel serves where it is asked for.
    pretend(monkeypatch, {"portable"}, openvino=False)
    assert usable(builtin) == ["onnxruntime fp32"]
    assert usable(builtin, "native") == ["native fp32 portable"]


def test_a_model_that_is_not_measured_with_the_native_encoder_goes_to_the_others(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, XEON_WITH_AMX, openvino=True)
    for other in (of_shape(builtin, 768, 12), of_shape(builtin, 384, 12, "roberta")):
        assert not [line for line in usable(other) if line.startswith("native")]
        assert usable(other)[0] == "openvino bf16 amx"


def test_a_gpu_is_first_and_computes_in_fp16_where_there_is_such_a_graph(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, ZEN_5, openvino=True, cuda=True)
    monkeypatch.setattr(candidates, "fused_operators_are_exact", lambda: True)
    (fp32,) = builtin.manifest.graphs
    assert usable(builtin)[0] == "cuda fp32 standard operators"
    graphs = [fp32, fp32.model_copy(update={"precision": "fp16"})]
    half = Bundle(builtin.path, builtin.manifest.model_copy(update={"graphs": graphs}))
    assert usable(half)[:2] == ["cuda fp16 standard operators", "cuda fp32 standard operators"]
    assert usable(half, "auto", "fp16") == ["cuda fp16 standard operators", "onnxruntime fp16"]
    graphs.append(graphs[1].model_copy(update={"operators": "onnxruntime"}))
    assert usable(half)[0] == "cuda fp16 fused operators"
    assert [device_of(name) for name in ("auto", "cuda", "native", "triton")] == ["gpu", "gpu", "cpu", "server"]


def test_the_lists_are_those_of_the_table() -> None:
    assert {line.engine for line in CANDIDATES} == DEVICES.keys() == set(ENGINES) - {"auto"}
    assert {line.precision for line in CANDIDATES} == set(PRECISIONS)
    assert {line.kernel for line in CANDIDATES if line.engine == "native"} == set(KERNELS) - {"amx_emulated"}
    assert "triton" not in EMBEDDED_ENGINES
    assert set(CPU_ENGINES) == {"native", "openvino", "onnxruntime"}
    for name, values in (("engine", ENGINES), ("precision", PRECISIONS)):
        assert get_args(ServeSettings.model_fields[name].annotation) == values


@pytest.mark.parametrize("engine", EMBEDDED_ENGINES)
def test_serve_takes_every_precision_that_an_engine_has(engine: str) -> None:
    for precision in PRECISIONS if engine == "auto" else precisions_of(engine):  # type: ignore[arg-type]
        assert ServeSettings(engine=engine, precision=precision).precision == precision  # type: ignore[arg-type]


def test_a_precision_that_an_engine_has_not_is_refused_with_those_that_have_it(builtin: Bundle) -> None:
    with pytest.raises(
        SetupError, match=r"engine onnxruntime serves fp32 and fp16 and int8, not bf16.*native or openvino"
    ):
        make_engine(builtin, "onnxruntime", "bf16")
    with pytest.raises(SetupError, match="computes in a Triton server"):
        make_engine(builtin, "triton")


class Scripted:
    """Lines whose loading fails as scripted; the last one is loaded by ONNX Runtime."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.tried: list[str] = []
        self.real = next(line for line in CANDIDATES if line.engine == "onnxruntime" and line.precision == "fp32")

    def line(
        self, engine: str, precision: str, kernel: str, error: Exception | Fault | None, reads: str = ""
    ) -> Candidate:
        def load(bundle: Bundle, threads: int | None, cache_dir: Path | None):  # type: ignore[no-untyped-def]
            self.tried.append(f"{engine} {precision} {kernel}")
            assert isinstance(error, Exception)
            raise error

        fault = error if isinstance(error, Fault) else None
        return Candidate(engine, precision, kernel, "", lambda bundle: fault, load, reads=reads)  # type: ignore[arg-type]

    def choose(self, bundle: Bundle, *lines: Candidate, name: str = "auto"):  # type: ignore[no-untyped-def]
        self.monkeypatch.setattr(select, "CANDIDATES", (*lines, self.real))
        select._say_once.cache_clear()
        return choose_engine(bundle, name, threads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "tried"),
    [
        (KernelFault("it computes nonsense"), ["native bf16 amx", "native bf16 avx512_bf16", "native fp32 avx2"]),
        (EngineFailure("in this precision"), ["native bf16 amx", "native fp32 avx2"]),
        (BundleError("the file"), ["native bf16 amx"]),
        (SetupError("no usable device"), ["native bf16 amx"]),
        (ImportError("libfast.so: cannot open shared object file"), ["native bf16 amx"]),
    ],
    ids=["kernel", "precision", "file", "engine", "installation"],
)
def test_a_failure_takes_with_it_the_lines_that_share_it(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception, tried: list[str]
) -> None:
    scripted = Scripted(monkeypatch)
    lines = [("bf16", "amx"), ("bf16", "avx512_bf16"), ("fp32", "avx2")]
    choice = scripted.choose(builtin, *(scripted.line("native", *line, error) for line in lines))
    assert scripted.tried == tried
    assert choice.engine is not None
    assert choice.engine.name == "onnxruntime"
    assert [verdict.state for verdict in choice.verdicts] == ["failed", "failed", "failed", "taken"]


def test_another_file_of_the_same_engine_is_tried(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch)
    failing = [scripted.line("cuda", "fp16", kernel, EngineFailure("off"), kernel) for kernel in ("fused", "standard")]
    scripted.choose(builtin, *failing)
    assert scripted.tried == ["cuda fp16 fused", "cuda fp16 standard"]


def test_what_is_passed_over_is_said_once_and_what_is_not_installed_is_not(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scripted = Scripted(monkeypatch)
    lines = [
        scripted.line("cuda", "fp32", "", Fault("no provider", absent=True)),
        scripted.line("native", "bf16", "amx", Fault("no AMX")),
        scripted.line("native", "fp32", "avx2", Fault("no AVX2")),
        scripted.line("openvino", "fp32", "", BundleError("its file is damaged")),
    ]
    scripted.choose(builtin, *lines)
    with caplog.at_level("INFO", "crossrank"):
        for _ in range(2):
            assert make_engine(builtin, threads=1).name == "onnxruntime"
    assert caplog.messages == [
        "engine native is not used: no AVX2",
        "engine openvino in fp32 is not used: its file is damaged",
    ]


def test_an_engine_that_serves_or_could_serve_with_another_line_is_not_said_to_be_unused(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, {"portable", "avx2"}, openvino=True)
    scripted = Scripted(monkeypatch)
    lines = [
        scripted.line("onnxruntime", "bf16", "", Fault("no such thing")),
        scripted.line("openvino", "bf16", "amx", Fault("no AMX")),
        scripted.line("native", "bf16", "amx", Fault("no AMX")),
        scripted.real,
        scripted.line("openvino", "fp32", "", None),
        scripted.line("native", "fp32", "avx2", Fault("no AVX2")),
    ]
    monkeypatch.setattr(select, "CANDIDATES", tuple(lines))
    select._say_once.cache_clear()
    with caplog.at_level("INFO", "crossrank"):
        make_engine(builtin, threads=1)
    assert caplog.messages == ["engine native is not used: no AVX2"]


def test_an_engine_asked_for_fails_with_its_own_error(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch)
    first = scripted.line("native", "bf16", "amx", KernelFault("the first reason"))
    second = scripted.line("native", "fp32", "avx2", EngineFailure("the second"))
    scripted.choose(builtin, first, second, name="native")
    with pytest.raises(KernelFault, match="the first reason"):
        make_engine(builtin, "native")
    unfit = dataclasses.replace(first, fault=lambda bundle: Fault("no AMX here"))
    monkeypatch.setattr(select, "CANDIDATES", (unfit, scripted.real))
    with pytest.raises(CrossrankError, match="engine native cannot serve crossrank-mini: no AMX here; --engine auto"):
        make_engine(builtin, "native")


@pytest.mark.skipif("avx2" not in usable_kernels(), reason="no AVX2")
def test_an_engine_that_was_found_to_differ_at_export_serves_only_where_it_is_asked_for(builtin: Bundle) -> None:
    record = {"native": {"runtime": "crossrank 0", "disagrees": True}}
    bundle = Bundle(builtin.path, builtin.manifest.model_copy(update={"engines": record}))
    choice = choose_engine(bundle, "auto", "fp32", threads=1)
    assert choice.taken is not None
    assert choice.taken.engine != "native"
    assert {verdict.state for verdict in choice.verdicts if verdict.candidate.kernel == "avx2"} == {"unfit"}
    assert make_engine(bundle, "native", "fp32", threads=1).name == "native"


@pytest.mark.skipif("avx512_bf16" not in usable_kernels(), reason="no AVX-512 BF16")
def test_where_amx_stays_idle_openvino_is_recommended(
    builtin: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, ZEN_5, openvino=False)
    monkeypatch.setattr(candidates, "cpu_flags", lambda: {"amx_bf16", "avx512_bf16"})
    select._say_once.cache_clear()
    with caplog.at_level("INFO", "crossrank"):
        engines = [make_engine(builtin, "auto", precision, threads=1) for precision in ("auto", "bf16")]
    assert {(engine.name, engine.precision) for engine in engines} == {("native", "bf16")}
    (message,) = caplog.messages
    assert "in bf16 without this CPU's AMX" in message
    assert "pip install 'crossrank[openvino]'" in message
