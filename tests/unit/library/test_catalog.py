"""The catalogue: spellings, figures as published, prices that follow from them."""

from __future__ import annotations

import dataclasses
import re

import pytest

from crossrank.bundles.catalog import BUILTIN, BUILTIN_ID, MODELS, CatalogModel, canonical_model_id, catalog_model
from crossrank.bundles.hub_ref import parse_hub_ref
from crossrank.bundles.layout import choose_files
from crossrank.errors import ModelSourceError
from crossrank.resolve import builtin_path

PRICED = "cross-encoder/ms-marco-TinyBERT-L2-v2"


def test_the_builtin_comes_first_and_nine_hub_models_follow():
    assert MODELS[0] is BUILTIN
    assert len({model.model_id for model in MODELS}) == len(MODELS) == 10
    assert all(model.model_id.startswith("cross-encoder/ms-marco-") for model in MODELS[1:])


def test_every_row_agrees_with_the_published_table(shared_dir):
    row = re.compile(
        r"^\| (cross-encoder/\S+).*?\| (\w+) \| (\d+) / (\d+) / (\d+) / (\d+).*?\| ([\d.]+) \| ([\d.]+) \| (\d+) \|$",
        re.MULTILINE,
    )
    published = row.findall((shared_dir / "docs" / "models.md").read_text())
    ours = [
        (m.model_id, m.model_type, m.layers, m.hidden, m.heads, m.ffn, m.ndcg_at_10, m.mrr_at_10, m.docs_per_s_v100)
        for m in MODELS[1:]
    ]
    assert ours == [(r[0], r[1], *map(int, r[2:6]), *map(float, r[6:8]), int(r[8])) for r in published]


def test_every_pin_agrees_with_the_published_hashes(shared_dir):
    text = (shared_dir / "docs" / "models.md").read_text()
    pins = {model.model_id: model.pin for model in MODELS if model.pin}
    assert sorted(pins) == [
        "cross-encoder/ms-marco-MiniLM-L2-v2",
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        PRICED,
    ]
    values = [value for pin in pins.values() for value in (pin.revision, *pin.sha256.values())]
    assert sorted(values) == sorted(re.findall(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{40}\b", text))
    for model_id, pin in pins.items():
        position = text.index(pin.revision)
        assert text.rindex("cross-encoder/ms-marco-", 0, position) == text.rindex(model_id, 0, position)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.short_name)
def test_every_spelling_is_accepted(model):
    spellings = [model.model_id, *model.aliases, model.short_name, f"  {model.model_id.upper()} "]
    if re.search(r"-L\d", model.model_id):
        spellings.append(re.sub(r"-L(\d)", r"-L-\1", model.model_id))
    assert {canonical_model_id(text) for text in spellings} == {model.model_id}
    assert catalog_model(spellings[-1]) is model


def test_spellings_are_unambiguous():
    spellings = [text.casefold() for model in MODELS for text in (model.model_id, *model.aliases)]
    assert len(set(spellings)) == len(spellings)


def test_other_text_is_returned_as_it_is():
    assert canonical_model_id(" BAAI/bge-reranker-base ") == "BAAI/bge-reranker-base"
    assert catalog_model("BAAI/bge-reranker-base") is None


def test_one_price_is_published_and_the_others_say_they_are_estimated():
    published = [model for model in MODELS if model.price_published]
    assert [model.model_id for model in published] == [PRICED]
    assert published[0].usd_per_1000_docs == 0.008
    assert all(("estimated" in model.price_basis) is not model.price_published for model in MODELS)


def test_estimated_prices_are_proportional_to_published_speeds():
    for model in MODELS[1:]:
        assert model.usd_per_1000_docs == pytest.approx(0.008 * 9000 / model.docs_per_s_v100, abs=5e-5)


def test_the_builtin_says_that_its_figure_is_of_another_protocol():
    assert BUILTIN.ndcg_at_10 == 60.93
    assert "BM25 top-100" in BUILTIN.protocol
    assert BUILTIN.protocol not in {model.protocol for model in MODELS[1:]}
    assert canonical_model_id("builtin") == BUILTIN_ID


def test_no_entry_gets_a_licence_by_default():
    (field,) = [field for field in dataclasses.fields(CatalogModel) if field.name == "licence"]
    assert field.default is dataclasses.MISSING
    assert {model.licence for model in MODELS[1:]} == {"Apache-2.0"}


def test_the_builtins_licence_is_what_its_own_card_says():
    card = " ".join((builtin_path() / "README.md").read_text().split())
    assert "whose terms allow research and other non-commercial use only" in card
    assert BUILTIN.licence == "non-commercial"
    assert "whose terms allow research and other non-commercial use only" in BUILTIN.terms


def test_entries_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BUILTIN.layers = 3
    with pytest.raises(TypeError):
        catalog_model(PRICED).pin.sha256["config.json"] = "0"


def test_a_pinned_model_is_pinned_until_another_revision_is_named():
    pin = catalog_model(PRICED).pin
    for ref in (parse_hub_ref(PRICED), parse_hub_ref(f"{PRICED}@{pin.revision}")):
        assert (ref.revision, ref.sha256) == (pin.revision, pin.sha256)
    for ref in (parse_hub_ref(f"{PRICED}@main"), parse_hub_ref(PRICED, "main")):
        assert (ref.revision, ref.sha256) == ("main", {})


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/7", "0" * 40])
def test_a_revision_may_follow_the_id(revision):
    ref = parse_hub_ref(f"owner/name@{revision}")
    assert (ref.model_id, ref.revision, ref.is_commit) == ("owner/name", revision, revision == "0" * 40)


@pytest.mark.parametrize("revision", ["../x", "a b", "-x", "a/../b"])
def test_a_malformed_revision_is_refused(revision):
    with pytest.raises(ModelSourceError, match="is not a revision"):
        parse_hub_ref("owner/name", revision)


def test_neither_weights_of_other_formats_nor_paths_that_climb_are_selected():
    names = ["config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_O1.onnx"]
    climbing = ["onnx/model.onnx/../../x", "model.safetensors", "pytorch_model.bin", "README.md"]
    files = choose_files([*names, *climbing], "x", lambda name: b"{}", kind="onnx")
    assert {*files.names, *files.data} == set(names) - {"onnx/model_O1.onnx"}
