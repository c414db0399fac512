"""Where a plan comes from: the real builder of TensorRT for RTX, the cache, and what is said where none can serve.

The GPU is a stand-in where there must be one; the real library builds for it, and refuses to load what it built.
"""

from __future__ import annotations

import json
import logging
import re
import threading

import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.engines import candidates
from crossrank.engines.select import make_engine
from crossrank.engines.shaped import GATE
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.cache import PlanCache
from crossrank.engines.tensorrt.choose import SM_VARIABLE, open_plan, plan_cache, plan_fault, plan_spec
from crossrank.engines.tensorrt.device import Device
from crossrank.errors import SetupError
from tests.engine_bundle import write_fp16_bundle
from tests.fake_builder import FakeDriver, install
from tests.fake_tensorrt import RTX

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'crossrank[tensorrt]'")

L4 = Device("NVIDIA L4", 89)


@pytest.fixture(scope="module")
def bundle(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("plans") / "bundle", max_length=64)


@pytest.fixture
def l4(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(L4.name, L4.sm)
    monkeypatch.setattr("cuda.bindings.runtime", driver)
    return driver


@pytest.fixture(scope="module")
def plan(bundle: Bundle) -> bytes:
    """The real thing."""
    spec = plan_spec(bundle, L4, 89, trt.__version__)
    return build_plan(trt, bundle.file(spec.graph.file), spec)


def cache_of(bundle: Bundle, directory, device: Device = L4, release: str = trt.__version__) -> PlanCache:
    return plan_cache(bundle, plan_spec(bundle, device, device.sm, release), directory)


def start(bundle: Bundle, directory) -> str:
    """Start as on a machine with a GPU, up to what only a driver can do, and return what the library says to it."""
    with pytest.raises(SetupError) as told:
        open_plan(bundle, GATE, directory)
    return str(told.value)


def test_the_first_start_builds_and_keeps_a_plan_and_the_next_takes_it(l4, bundle, tmp_path, caplog):
    caplog.set_level(logging.INFO, "crossrank")
    assert start(bundle, tmp_path).startswith(f"TensorRT for RTX {trt.__version__} cannot load model.sm89.rtx")
    assert "builds a plan for L4 (SM 8.9) from model.fp16.onnx, for lengths of 32, 64 tokens" in caplog.text
    assert "built " in caplog.text
    kept = cache_of(bundle, tmp_path).plan()
    assert kept is not None
    assert len(kept) > bundle.file("model.fp16.onnx").stat().st_size
    facts = json.loads((cache_of(bundle, tmp_path).path / "plan.json").read_text())
    assert (facts["sms"], facts["tensorrt"], facts["runtime"]) == ([89], trt.__version__, "tensorrt-rtx")
    assert facts["profiles"][0] == {"min": [1, 1], "opt": [256, 32], "max": [3072, 32]}
    assert not list(tmp_path.glob("**/*.partial"))
    caplog.clear()
    start(bundle, tmp_path)
    assert "builds a plan" not in caplog.text
    assert cache_of(bundle, tmp_path).plan() == kept


def test_the_key_holds_all_that_decides_the_plan(bundle, tmp_path):
    manifest = bundle.manifest
    changes = [{"max_length": 60}, {"files": {**manifest.files, "model.fp16.onnx": "0" * 64}}]
    others = [
        *(cache_of(Bundle(bundle.path, manifest.model_copy(update=change)), tmp_path) for change in changes),
        cache_of(bundle, tmp_path, Device("Tesla T4", 75)),
        cache_of(bundle, tmp_path, release="1.8.0.1"),
    ]
    assert len({cache.path for cache in (*others, cache_of(bundle, tmp_path))}) == 5
    assert cache_of(bundle, tmp_path).path == cache_of(bundle, tmp_path, Device("NVIDIA L40S", 89)).path


@pytest.mark.parametrize("damage", ["plan", "facts", "no JSON", "list", "cut", "foreign"])
def test_a_damaged_or_foreign_plan_is_built_again(bundle, plan, tmp_path, caplog, damage):
    cache = cache_of(bundle, tmp_path)
    assert cache.build(lambda: plan) == plan
    facts, file = cache.path / "plan.json", cache.path / "model.plan"
    if damage == "plan":
        file.write_bytes(plan[:-1] + bytes([plan[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(plan[:1000])
    elif damage == "facts":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "sms": [75]}))
    elif damage == "foreign":
        other = cache_of(bundle, tmp_path, Device("Tesla T4", 75))
        other.build(lambda: b"for a T4")
        for name in ("plan.json", "model.plan"):
            (cache.path / name).write_bytes((other.path / name).read_bytes())
    else:
        facts.write_text({"no JSON": "{", "list": "[]"}[damage])
    assert cache.plan() is None
    assert "is damaged, or another one, and will be built again" in caplog.text
    assert cache.build(lambda: plan) == plan
    assert cache.plan() == plan


def test_several_processes_that_start_together_build_once(bundle, plan, tmp_path):
    built: list[int] = []
    together = threading.Barrier(3)

    def work(number: int) -> None:
        def build() -> bytes:
            built.append(number)
            return plan

        together.wait()
        assert cache_of(bundle, tmp_path).build(build) == plan

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_failed_build_keeps_nothing(bundle, tmp_path):
    def build() -> bytes:
        raise SetupError("refused")

    cache = cache_of(bundle, tmp_path)
    with pytest.raises(SetupError, match="refused"):
        cache.build(build)
    assert [path.name for path in cache.path.iterdir()] in ([".lock"], [])


def test_a_cache_that_cannot_be_written_costs_only_the_next_start(bundle, plan, tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = cache_of(bundle, tmp_path / "file")
    assert cache.build(lambda: plan) == plan
    assert "cannot be written (Not a directory): the next start builds the plan again" in caplog.text
    cache.keep_kernels("NVIDIA L4", b"kernels")
    assert cache.kernels("NVIDIA L4") == b""


def test_a_kept_plan_that_tensorrt_refuses_is_built_again(monkeypatch, bundle, tmp_path, caplog):
    install(monkeypatch, RTX, FakeDriver(L4.name, L4.sm))
    cache = cache_of(bundle, tmp_path)
    cache.build(lambda: b"whole, but no plan")
    served = open_plan(bundle, GATE, tmp_path)
    assert [profile.length for profile in served.plan.profiles] == [32, 64]
    served.plan.close()
    assert "will be built again: TensorRT for RTX" in caplog.text
    assert "it is damaged, or no plan of this release" in caplog.text
    kept = cache.plan()
    open_plan(bundle, GATE, tmp_path).plan.close()
    assert cache.plan() == kept


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"OLD_CUDA_DRIVER"}, r"cannot load model\.sm89.*: the NVIDIA driver is too old for it: update it$"),
        ({"INSUFFICIENT_GPU_MEMORY"}, r"the GPU has too little memory for it: free some \(nvidia-smi\)"),
        ({"UNSUPPORTED_CC"}, r"it was built for other GPUs: build it for this one"),
        ({"VERSION_MISMATCH", "OLD_CUDA_DRIVER"}, r"the NVIDIA driver is too old"),
        (set(), r"it gives no reason$"),
    ],
    ids=["old driver", "little memory", "other GPUs", "two reasons", "no reason"],
)
def test_what_tensorrt_has_against_a_plan_is_told_with_the_remedy(monkeypatch, bundle, tmp_path, bits, message):
    def validity(runtime, header):
        found = sum(int(getattr(trt.EngineInvalidityDiagnostics, bit)) for bit in bits)
        return trt.EngineValidity.INVALID, found

    install(monkeypatch, RTX, FakeDriver(L4.name, L4.sm), overrides={"Runtime.get_engine_validity": validity})
    with pytest.raises(SetupError, match=message):
        open_plan(bundle, GATE, tmp_path)


def test_the_real_library_refuses_what_is_no_plan_with_the_remedy(l4, bundle, tmp_path):
    cache = cache_of(bundle, tmp_path)
    cache.build(lambda: b"no plan" * 100)
    # It is built again, and that one needs a driver.
    assert "it is damaged" not in start(bundle, tmp_path)
    assert len(cache.plan() or b"") > 1_000_000


def test_this_machine_without_a_gpu_gets_one_line(builtin, bundle):
    for model in (builtin, bundle):
        with pytest.raises(SetupError, match=r"^engine tensorrt cannot serve .*: no NVIDIA driver is"):
            make_engine(model, "tensorrt")


@pytest.mark.parametrize(
    ("name", "sm", "message"),
    [
        ("NVIDIA H100", 90, r"TensorRT for RTX does not serve the NVIDIA H100 \(SM 9\.0\): .*--gpu h100\)$"),
        (
            "NVIDIA B200",
            100,
            r"does not serve the NVIDIA B200 \(SM 10\.0\): use --engine cuda, or build .* --gpu b200\)",
        ),
        ("Tesla V100", 70, r"does not serve the Tesla V100 \(SM 7\.0\): .* with TensorRT itself .*--gpu v100\)"),
        ("NVIDIA L4", 89, "^$"),
        ("Tesla T4", 75, "^$"),
    ],
)
def test_gpus_that_are_not_served_are_told_by_name(monkeypatch, bundle, name, sm, message):
    monkeypatch.setattr("cuda.bindings.runtime", FakeDriver(name, sm))
    assert re.search(message, plan_fault(bundle))


def test_a_variable_tries_a_capability_on_a_gpu_that_is_not_listed(monkeypatch, bundle, tmp_path, caplog):
    install(monkeypatch, RTX, FakeDriver("NVIDIA H100", 90))
    monkeypatch.setenv(SM_VARIABLE, "80")
    assert plan_fault(bundle) == ""
    served = open_plan(bundle, GATE, tmp_path)
    assert served.plan.name.startswith("model.sm80.rtx")
    served.plan.close()
    assert "CROSSRANK_TENSORRT_SM is set: plans for SM 8.0 are tried on SM 9.0" in caplog.text
    monkeypatch.setenv(SM_VARIABLE, "9.0")
    assert plan_fault(bundle) == (
        "CROSSRANK_TENSORRT_SM is '9.0', TensorRT for RTX compiles for 75, 80, 86, 89, 120, 121: give one, or unset it"
    )


def test_a_bundle_without_the_graph_names_the_export_that_writes_it(l4, builtin):
    with pytest.raises(SetupError, match=r"has no fp16 graph, only fp32: export it with --precision fp16"):
        make_engine(builtin, "tensorrt")


def test_without_tensorrt_the_extra_is_named(monkeypatch, bundle):
    monkeypatch.setattr(candidates, "tensorrt_installed", lambda: False)
    with pytest.raises(
        SetupError, match=r"engine tensorrt needs TensorRT for RTX: pip install 'crossrank\[tensorrt\]'"
    ):
        make_engine(bundle, "tensorrt")


def test_plans_of_the_bundle_for_other_machines_are_passed_over_and_named(monkeypatch, bundle, tmp_path, caplog):
    install(monkeypatch, RTX, FakeDriver(L4.name, L4.sm))
    caplog.set_level(logging.INFO, "crossrank")
    entries = [
        {"file": f"model.{sm}.plan", "runtime": "tensorrt-rtx", "gpus": ["t4"], "sms": [sm], "tensorrt": release}
        for sm, release in ((75, trt.__version__), (89, "1.6.0.1"), (89, trt.__version__))
    ]
    entries[2] |= {"graph": "model.fp16.onnx", "graph_sha256": "of another graph"}
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"plans": entries}))
    open_plan(other, GATE, tmp_path).plan.close()
    assert "a plan is not used: model.75.plan was built for SM 7.5 (t4), this GPU is SM 8.9" in caplog.text
    assert "a plan is not used: model.89.plan was built by TensorRT for RTX 1.6.0.1" in caplog.text
    assert "a plan is not used: model.89.plan was built from another graph: build it again" in caplog.text
    assert "builds a plan for L4" in caplog.text


def test_a_plan_of_the_bundle_that_tensorrt_refuses_is_passed_over(monkeypatch, bundle, tmp_path, caplog):
    install(monkeypatch, RTX, FakeDriver(L4.name, L4.sm))
    file, graph = "model.sm89.plan", "model.fp16.onnx"
    entry = {"file": file, "runtime": "tensorrt-rtx", "gpus": ["l4"], "sms": [89], "tensorrt": trt.__version__}
    entry |= {"graph": graph, "graph_sha256": bundle.manifest.files[graph]}
    files = {**bundle.manifest.files, file: "0" * 64}
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / graph).write_bytes(bundle.file(graph).read_bytes())
    (tmp_path / "bundle" / file).write_bytes(b"of a release that is not this one")
    other = Bundle(tmp_path / "bundle", bundle.manifest.model_copy(update={"plans": [entry], "files": files}))
    served = open_plan(other, GATE, tmp_path / "cache")
    assert served.plan.name != file
    served.plan.close()
    assert re.search(r"a plan is not used: .* cannot load model\.sm89\.plan: it is damaged, or no plan of", caplog.text)
