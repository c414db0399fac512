"""Pair templates read from tokenizer.json are what the tokenizer itself does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from crossrank.bundles.bundle import Architecture, PairTemplate
from crossrank.checkpoints.config import ModelConfig
from crossrank.checkpoints.tokens import PairTokens, read_tokens
from crossrank.errors import ModelSourceError

VOCAB = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5, "what": 6, "is": 7}
BERT_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "</s>", "type_id": 1}},
    ],
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
        "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
    },
}
ROBERTA = {
    "type": "RobertaProcessing",
    "sep": ["</s>", 2],
    "cls": ["<s>", 0],
    "trim_offsets": True,
    "add_prefix_space": False,
}


def config(window: int | None = 512) -> ModelConfig:
    shape = Architecture(model_type="bert", layers=1, hidden=8, heads=2, ffn=16, vocab_size=8)
    return ModelConfig(shape, 1, "sigmoid", window, pad_token_id=1, segment_types=2)


def write(directory: Path, processor: Any, **more: Any) -> Path:
    definition = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": processor,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCAB, "unk_token": "<unk>"},
        **more,
    }
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    return directory


def read(directory: Path, cap: int | None = None, window: int | None = 512) -> PairTokens:
    return read_tokens(directory, config(window), cap)


@pytest.mark.parametrize(
    ("processor", "template"),
    [
        (BERT_TEMPLATE, PairTemplate(start=[0], middle=[2], end=[2], segments=(0, 1))),
        (
            {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]},
            PairTemplate(start=[0], middle=[2], end=[2], segments=(0, 1)),
        ),
        (ROBERTA, PairTemplate(start=[0], middle=[2, 2], end=[2], segments=(0, 0))),
        (
            {"type": "Sequence", "processors": [ROBERTA]},
            PairTemplate(start=[0], middle=[2, 2], end=[2], segments=(0, 0)),
        ),
    ],
    ids=["template", "bert", "roberta", "sequence"],
)
def test_the_template_is_what_the_tokenizer_does(tmp_path: Path, processor: Any, template: PairTemplate):
    tokens = read(write(tmp_path, processor))
    assert tokens.template == template
    own = Tokenizer.from_str(json.dumps(tokens.definition)).encode("what is a", "b")
    assert own.ids == [*template.start, 6, 7, 4, *template.middle, 5, *template.end]


def test_truncation_and_padding_are_removed_from_the_written_tokenizer(tmp_path: Path):
    tokens = read(write(tmp_path, BERT_TEMPLATE))
    out = tmp_path / "out"
    out.mkdir()
    tokens.write(out)
    written = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert written.truncation is None
    assert written.padding is None
    assert len(written.encode("a " * 50, "b").ids) == 54


@pytest.mark.parametrize("processor", [None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}])
def test_a_tokenizer_that_frames_no_pairs_is_refused(tmp_path: Path, processor: Any):
    with pytest.raises(ModelSourceError, match="does not say how a pair is framed"):
        read(write(tmp_path, processor))


def test_a_frame_that_no_template_expresses_is_refused(tmp_path: Path):
    pair = json.loads(json.dumps(BERT_TEMPLATE))
    pair["pair"][2]["SpecialToken"]["type_id"] = 1
    with pytest.raises(ModelSourceError, match="no pair template expresses"):
        read(write(tmp_path, pair))


def test_document_before_query_is_refused(tmp_path: Path):
    pair = json.loads(json.dumps(BERT_TEMPLATE))
    pair["pair"][1], pair["pair"][3] = pair["pair"][3], pair["pair"][1]
    with pytest.raises(ModelSourceError, match="not query then document"):
        read(write(tmp_path, pair))


def test_a_file_that_is_no_fast_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match="not a fast tokenizer"):
        read(write(tmp_path, BERT_TEMPLATE, model={"type": "Slow"}))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelSourceError, match="cannot be read as JSON"):
        read(tmp_path)


def test_the_window_is_the_smallest_of_model_tokenizer_and_cap(tmp_path: Path):
    write(tmp_path, BERT_TEMPLATE)
    assert read(tmp_path).max_length == 512
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 256}')
    assert read(tmp_path).max_length == 256
    assert read(tmp_path, cap=128).max_length == 128
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read(tmp_path).max_length == 512


@pytest.mark.parametrize("cap", [4, 513])
def test_a_cap_outside_the_window_is_refused_with_the_limits(tmp_path: Path, cap: int):
    with pytest.raises(ModelSourceError, match=f"--max-length {cap} .* give 5 to 512 tokens"):
        read(write(tmp_path, BERT_TEMPLATE), cap=cap)


def test_a_model_without_a_window_asks_for_one(tmp_path: Path):
    write(tmp_path, BERT_TEMPLATE)
    with pytest.raises(ModelSourceError, match="say how many tokens"):
        read(tmp_path, window=None)
    assert read(tmp_path, cap=64, window=None).max_length == 64


def test_special_ids_come_from_the_companions_and_else_from_template_and_config(tmp_path: Path):
    write(tmp_path, BERT_TEMPLATE)
    assert read(tmp_path).special_token_ids == {"cls": 0, "sep": 2, "pad": 1}
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": {"content": "<unk>"}, "pad_token": "<pad>"}')
    assert read(tmp_path).special_token_ids == {"cls": 0, "sep": 2, "pad": 1, "unk": 3}


@pytest.mark.parametrize(
    ("rows", "input_names"),
    [(1, None), (1, ["input_ids", "token_type_ids"]), (2, ["input_ids", "attention_mask"])],
    ids=["the model has one segment", "and is given it", "the tokenizer keeps them from it"],
)
def test_segments_that_the_model_never_sees_are_all_the_first(
    rows: int, input_names: list[str] | None, tmp_path: Path
) -> None:
    directory = write(tmp_path, BERT_TEMPLATE)
    if input_names is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"model_input_names": input_names}))
    tokens = read_tokens(directory, replace(config(), segment_types=rows), None)
    assert tokens.template.segments == (0, 0)
    assert tokens.encode([("what is", "a b")]).token_type_ids.tolist() == [0] * 7


def test_segments_are_kept_where_the_tokenizer_names_them(tmp_path: Path) -> None:
    directory = write(tmp_path, BERT_TEMPLATE)
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    assert read_tokens(directory, config(), None).template.segments == (0, 1)


@pytest.mark.parametrize(
    ("settings", "segments"),
    [
        ({"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"}, (0, 0)),
        ({"tokenizer_class": "TokenizersBackend"}, (0, 0)),
        ({"tokenizer_class": "AlbertTokenizer", "backend": "tokenizers"}, (0, 0)),
        ({"tokenizer_class": "BertTokenizer", "backend": "tokenizers"}, (0, 1)),
        (
            {
                "tokenizer_class": "TokenizersBackend",
                "backend": "tokenizers",
                "model_input_names": ["input_ids", "token_type_ids"],
            },
            (0, 1),
        ),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, (0, 1)),
        ({"tokenizer_class": "AlbertTokenizer"}, (0, 1)),
    ],
    ids=["generic", "by its name", "ALBERT", "BERT", "said", "generic of version 4", "ALBERT of version 4"],
)
def test_segments_are_fed_as_the_version_of_transformers_that_wrote_the_files_feeds_them(
    settings: dict[str, Any], segments: tuple[int, int], tmp_path: Path
) -> None:
    directory = write(tmp_path, BERT_TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_tokens(directory, config(), None).template.segments == segments
