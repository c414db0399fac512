"""The stand-in for TensorRT 10.4 and 11.4 has what the recorded bindings have, and nothing else."""

from __future__ import annotations

import json

import pytest

from tests.fake_tensorrt import GOLDEN, VERSIONS, fake_tensorrt, recorded_api, signature_of


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_api_is_the_recorded_one(version, shared_dir):
    name = f"tensorrt-{version}-python-api.json"
    assert json.loads((GOLDEN / name).read_text()) == json.loads((shared_dir / "facts" / name).read_text())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_name_exists_and_no_other(version):
    module = fake_tensorrt(version)
    for name, record in recorded_api(version).items():
        if record["kind"] == "function":
            continue
        assert hasattr(module, name)
        for member in record.get("enum", {}):
            assert int(getattr(getattr(module, name), member)) == record["enum"][member]
    with pytest.raises(AttributeError):
        module.FP16  # noqa: B018
    with pytest.raises(AttributeError):
        module.Builder.build_cuda_engine  # noqa: B018


def test_weak_typing_exists_in_10_and_raises_in_11():
    old, new = (fake_tensorrt(version) for version in VERSIONS)
    assert int(old.BuilderFlag.FP16) == 0
    for name in ("FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS"):
        with pytest.raises(AttributeError, match=name):
            getattr(new.BuilderFlag, name)
    assert int(old.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(new.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    with pytest.raises(AttributeError, match="EXPLICIT_BATCH"):
        new.NetworkDefinitionCreationFlag.EXPLICIT_BATCH  # noqa: B018


def test_queries_of_the_platform_are_gone_from_11():
    behaviour = {"Builder.platform_has_fast_fp16": lambda builder: True}
    old, new = (fake_tensorrt(version, behaviour) for version in VERSIONS)
    assert old.Builder(old.Logger(old.Logger.WARNING)).platform_has_fast_fp16
    with pytest.raises(AttributeError, match="platform_has_fast_fp16"):
        new.Builder(new.Logger(new.Logger.WARNING)).platform_has_fast_fp16  # noqa: B018


@pytest.mark.parametrize("version", VERSIONS)
def test_setting_an_unknown_attribute_raises(version):
    trt = fake_tensorrt(version)
    config = trt.IBuilderConfig.__new__(trt.IBuilderConfig)
    config.builder_optimization_level = 5
    assert config.builder_optimization_level == 5
    with pytest.raises(AttributeError, match="max_workspace_size"):
        config.max_workspace_size = 1 << 30


@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_arguments_raise(version):
    done = {"IBuilderConfig.set_memory_pool_limit": lambda *_, **__: None}
    trt = fake_tensorrt(version, done)
    config = trt.IBuilderConfig.__new__(trt.IBuilderConfig)
    pool = trt.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, 1)
    config.set_memory_pool_limit(pool=pool, pool_size=1)
    for wrong in ((pool,), (pool, 1, 2), (0, 1), (pool, "1"), (trt.BuilderFlag.TF32, 1)):
        with pytest.raises(TypeError):
            config.set_memory_pool_limit(*wrong)
    with pytest.raises(TypeError):
        config.set_memory_pool_limit(pool, size=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_only_factories_make_has_no_constructor(version):
    trt = fake_tensorrt(version)
    with pytest.raises(TypeError, match="No constructor"):
        trt.IBuilderConfig()
    with pytest.raises(TypeError):
        trt.Builder()
    with pytest.raises(TypeError):
        trt.Builder("logger")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_has_no_behaviour_is_not_passed_over(version):
    trt = fake_tensorrt(version)
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    with pytest.raises(NotImplementedError):
        builder.create_network(0)
    with pytest.raises(NotImplementedError):
        builder.max_threads  # noqa: B018


def test_signatures_are_read_with_defaults_and_keywords():
    signature = signature_of("f(self: tensorrt.tensorrt.X, a: List[int, int], in: int = 3) -> None")
    assert list(signature.parameters) == ["self", "a", "in_"]
    assert signature.parameters["in_"].default == "3"
    assert signature_of("f(*args, **kwargs)") is None


@pytest.mark.parametrize("version", VERSIONS)
def test_only_cut_lines_and_overloads_go_unchecked(version):
    unread = [
        f"{name}.{member}"
        for name, record in recorded_api(version).items()
        for member, doc in record.get("members", {}).items()
        if doc.startswith(f"{member}(") and "*args" not in doc and signature_of(doc) is None
    ]
    assert all(name.startswith("IPlugin") for name in unread)
