"""Which TensorRT builds for which GPU, and what a user is told where none or another one does."""

from __future__ import annotations

import pytest

from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.runtimes import RTX, RTX_RELEASE, TENSORRT, choose_runtime
from crossrank.engines.tensorrt.spec import make_spec
from crossrank.errors import BundleError, SetupError
from crossrank_export.trt.describe import describe
from crossrank_export.trt.machine import require_wheel
from tests.unit.export.test_engine_spec import manifest  # noqa: F401 - a fixture


def chosen(*names, wanted=None):
    return choose_runtime([GPUS[name] for name in names], wanted)


@pytest.mark.parametrize("name", [name for name, gpu in GPUS.items() if gpu.sm not in (70, 90, 100)])
def test_tensorrt_for_rtx_serves_what_it_can(name):
    assert chosen(name)[0] is RTX
    assert chosen(name, wanted="tensorrt")[0] is TENSORRT


@pytest.mark.parametrize("name", ["v100", "h100", "h200", "b200"])
def test_tensorrt_serves_the_others(name):
    runtime, why = chosen(name)
    assert runtime is TENSORRT
    assert why == f"TensorRT for RTX does not serve the {GPUS[name].label}"
    with pytest.raises(SetupError, match=rf"does not serve the {GPUS[name].label} \(SM .*it serves t4, a100"):
        chosen(name, wanted="tensorrt-rtx")


def test_several_gpus_share_a_plan_of_tensorrt_for_rtx():
    assert chosen("t4", "a100", "l4")[0] is RTX
    assert chosen("l4", "l40s", wanted="tensorrt")[0] is TENSORRT  # one compute capability
    with pytest.raises(SetupError, match=r"one compute capability, not for the Tesla T4 \(SM 7\.5\) and the L4"):
        chosen("t4", "l4", wanted="tensorrt")


def test_gpus_that_cannot_share_a_plan_are_told_apart():
    with pytest.raises(SetupError, match=r"no plan runs on the Tesla V100 .* too: .*the Tesla T4 .* and the L4 .* can"):
        chosen("t4", "v100", "l4")
    with pytest.raises(SetupError, match=r"no plan runs on the Tesla V100 \(SM 7\.0\) and the H100 .* one --gpu$"):
        chosen("v100", "h100")


def test_a_missing_wheel_is_told_with_what_installs_it():
    with pytest.raises(SetupError, match=r"TensorRT for RTX is not installed: pip install 'crossrank\[tensorrt\]'"):
        require_wheel(None)


def rtx_spec(manifest, path, *names, **options):  # noqa: F811
    return make_spec(manifest, path, [GPUS[name] for name in names], RTX, RTX_RELEASE, **options)


def test_a_portable_plan_is_named_by_its_capabilities_and_release(manifest, tmp_path):  # noqa: F811
    spec = rtx_spec(manifest, tmp_path, "l40s", "t4", "l4")
    assert spec.plan_name == f"model.sm75-sm89.rtx{RTX_RELEASE}.fp16.plan"
    entry = spec.as_entry()
    assert (entry["runtime"], entry["sms"], entry["gpus"]) == ("tensorrt-rtx", [75, 89], ["l40s", "t4", "l4"])
    check_plan(entry, 75, RTX_RELEASE)
    with pytest.raises(BundleError, match=r"built for SM 7\.5, 8\.9 \(l40s, t4, l4\), this GPU is SM 8\.6"):
        check_plan(entry, 86, RTX_RELEASE)
    with pytest.raises(BundleError, match=r"by TensorRT for RTX 1\.7\.1\.116, TensorRT for RTX 1\.8\.0\.1 is"):
        check_plan(entry, 89, "1.8.0.1")


def test_the_description_says_which_runtime_and_why(manifest, tmp_path):  # noqa: F811
    text = describe(rtx_spec(manifest, tmp_path, "t4"), tmp_path, "because")
    assert f"by         TensorRT for RTX {RTX_RELEASE}: because" in text
    assert "served by  crossrank serve --engine tensorrt; not Triton, which needs --runtime tensorrt" in text
    assert "trtexec" not in text
    assert "timings" not in text


def test_a_timing_cache_is_refused_where_nothing_is_timed(manifest, tmp_path):  # noqa: F811
    with pytest.raises(SetupError, match="--timing-cache: TensorRT for RTX times no kernels"):
        rtx_spec(manifest, tmp_path, "t4", timing_cache=tmp_path / "cache")
