"""The pairs that variants are compared on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from crossrank.checkpoints.config import read_config
from crossrank.checkpoints.tokens import read_tokens
from crossrank.errors import SetupError
from crossrank.resolve import builtin_path
from crossrank_export.samples import builtin_groups, read_groups

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "id2label": {"0": "LABEL_0"},
}


@pytest.mark.parametrize("window", [64, 512])
def test_builtin_pairs_reach_from_short_to_the_full_window(tmp_path: Path, window: int):
    (tmp_path / "tokenizer.json").write_bytes((builtin_path() / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    tokens = read_tokens(tmp_path, read_config(tmp_path), window)
    groups = builtin_groups(window)
    batch = tokens.encode([(group.query, text) for group in groups for text in group.documents])
    lengths = batch.lengths
    assert lengths.min() < 24
    assert lengths.max() == window
    assert len(set(lengths.tolist())) > 10
    assert any(not text.isascii() for group in groups for text in group.documents)


def test_builtin_pairs_are_the_same_every_time():
    assert builtin_groups(512) == builtin_groups(512)


@pytest.mark.parametrize(
    ("documents", "digest"),
    [
        (16, "48f5d8a5bd2f6fbdae78076aacfa52b0d63cefeac1dc479d071968dba2110a7a"),
        (8, "ecb5da3f5a951983470a240d39faca29853972cb40d34a9f0052364cfe429f0c"),
        (4, "0fce38a281172cb24a6819f0bb6782988b3df337c8021b5b0a97cdc4b67fbe50"),
    ],
)
def test_builtin_pairs_are_those_that_recorded_figures_were_measured_on(documents: int, digest: str):
    groups = [[group.query, group.documents, group.docids] for group in builtin_groups(512, documents)]
    assert hashlib.sha256(json.dumps(groups).encode()).hexdigest() == digest


def test_both_forms_of_a_users_file_are_read_with_their_judgments(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"query": "q", "documents": ["a", "b"], "judgments": {"1": 2}}\n\n'
        '{"qid": "7", "query": "r", "candidates": [{"docid": "x", "text": "c", "bm25_rank": 1}]}\n'
    )
    first, second = read_groups(file)
    assert (first.documents, first.docids, first.grades) == (["a", "b"], ["0", "1"], {"1": 2})
    assert (second.documents, second.docids, second.grades) == (["c"], ["x"], {})


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        '{"query": "q"}',
        '{"query": "q", "documents": []}',
        '{"query": "q", "documents": "one text is a list of letters to Python"}',
        '{"query": "q", "documents": ["a", null]}',
        '{"query": null, "documents": ["a"]}',
        '{"query": "q", "candidates": ["a"]}',
        '{"query": "q", "candidates": [{"docid": 1, "text": null}]}',
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "q", "documents": ["a"]}\n' + line + "\n")
    with pytest.raises(SetupError, match=r"pairs\.jsonl:2"):
        read_groups(file)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="cannot be read"):
        read_groups(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SetupError, match="is empty"):
        read_groups(tmp_path / "empty.jsonl")
