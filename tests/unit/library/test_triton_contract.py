"""A model in Triton is used only if it takes what the bundle's tokenizer makes."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc import service_pb2

from crossrank.bundles.bundle import Bundle
from crossrank.engines.triton.contract import contract_from_replies
from crossrank.errors import SetupError
from crossrank_export.triton.config import engine_config, text_config
from crossrank_export.triton.spec import RepositorySpec, make_spec

_DTYPES = {pb.TYPE_INT32: "INT32", pb.TYPE_FP32: "FP32", pb.TYPE_STRING: "BYTES"}


@pytest.fixture
def spec(builtin: Bundle) -> RepositorySpec:
    return make_spec(builtin.manifest, "cpu", precision="fp32", max_batch=64)


def metadata_of(config: Any, versions: tuple[str, ...] = ("1",)) -> Any:
    """Return the metadata that Triton derives from a configuration."""
    reply = service_pb2.ModelMetadataResponse(name=config.name, versions=versions)
    batch = [-1] if config.max_batch_size else []
    for tensors, target in ((config.input, reply.inputs), (config.output, reply.outputs)):
        for tensor in tensors:
            kind = _DTYPES[tensor.data_type]
            target.add(name=tensor.name, datatype=kind, shape=[*batch, *tensor.dims])
    return reply


def test_a_repository_of_the_same_bundle_fits(builtin: Bundle, spec: RepositorySpec) -> None:
    config = engine_config(spec, builtin.manifest)
    contract = contract_from_replies(builtin.manifest, metadata_of(config, ("9", "10")), config)
    assert contract.version == "10"
    assert contract.buckets == spec.buckets
    assert contract.precision == "fp32"
    assert contract.output == "logits"
    assert set(contract.inputs) == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.parametrize(("mixed_rows", "rows", "merges"), [("0", 64, False), ("32", 32, True), ("100", 64, True)])
def test_the_model_says_how_many_rows_and_lengths_share_an_inference(
    builtin: Bundle, spec: RepositorySpec, mixed_rows: str, rows: int, merges: bool
) -> None:
    config = engine_config(spec, builtin.manifest)
    config.parameters["crossrank_mixed_rows"].string_value = mixed_rows
    contract = contract_from_replies(builtin.manifest, metadata_of(config), config)
    assert (contract.max_rows, contract.merges_lengths) == (rows, merges)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crossrank_model_id", "other/model"),
        ("crossrank_tokenizer_sha256", "0" * 64),
        ("crossrank_max_length", "256"),
        ("crossrank_buckets", ""),
        ("crossrank_buckets", "32,64"),
        ("crossrank_buckets", "64,32,512"),
        ("crossrank_buckets", "64,x,512"),
    ],
)
def test_another_model_tokenizer_or_window_is_refused(
    builtin: Bundle, spec: RepositorySpec, key: str, value: str
) -> None:
    config = engine_config(spec, builtin.manifest)
    config.parameters[key].string_value = value
    with pytest.raises(SetupError, match=key):
        contract_from_replies(builtin.manifest, metadata_of(config), config)


def test_a_model_without_our_parameters_is_refused(builtin: Bundle, spec: RepositorySpec) -> None:
    config = engine_config(spec, builtin.manifest)
    config.ClearField("parameters")
    with pytest.raises(SetupError, match="crossrank repository"):
        contract_from_replies(builtin.manifest, metadata_of(config), config)


def test_other_tensors_are_refused_naming_both_sides(builtin: Bundle, spec: RepositorySpec) -> None:
    config = engine_config(spec, builtin.manifest)
    wide = metadata_of(config)
    wide.inputs[0].datatype = "INT64"
    with pytest.raises(SetupError, match=r"INT64 \[-1, -1\].*the bundle needs.*INT32"):
        contract_from_replies(builtin.manifest, wide, config)
    flat = metadata_of(config)
    flat.outputs[0].shape[:] = [-1]
    with pytest.raises(SetupError, match=r"outputs logits FP32 \[-1\], the bundle needs logits FP32 \[-1, 1\]"):
        contract_from_replies(builtin.manifest, flat, config)
    fewer = metadata_of(config)
    del fewer.inputs[0]
    with pytest.raises(SetupError, match="has the inputs"):
        contract_from_replies(builtin.manifest, fewer, config)


def test_the_text_model_is_refused(builtin: Bundle, spec: RepositorySpec) -> None:
    config = text_config(spec, builtin.manifest)
    with pytest.raises(SetupError, match="has the inputs DOCUMENTS BYTES"):
        contract_from_replies(builtin.manifest, metadata_of(config), config)
