"""What files beside tokenizer.json change about a pair's tokens: ours are those of transformers, setting by setting."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from crossrank.checkpoints.config import _PADDING, read_config
from crossrank.checkpoints.tokenizer_classes import CLASSES, KEEPING_CHINESE, REWRITING, WITHOUT_TYPES
from crossrank.checkpoints.tokens import PairTokens, read_tokens
from crossrank.errors import ModelSourceError
from crossrank_export.token_parity import refuse_other_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZéüÉ", *"[]0123456789.,?"]
WORDS = [
    *SPECIAL,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    "北",
    "京",
    "##京",
    "museum",
    "Museum",
    "cafe",
    "café",
]
WINDOW = 16
LONG = " ".join(f"museum {letter}" for letter in LETTERS[:20])
PAIRS = [
    ("what is it", "Museum café CAFÉ 北京 museum"),
    ("Übrigens museum", "a [MASK] b [SEP]c [unused] museumX <x> d"),
    (" leading  spaces ", LONG),
    (LONG, "end"),
    (LONG, LONG[40:]),
    ("", "museumX <x> d"),
]
Change = Callable[[dict[str, Any]], Any]


def write(directory: Path, *, settings: dict[str, Any], definition: Change | None = None, **files: Any) -> Path:
    """Write a directory with BERT's kind of tokenizer."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair, special = "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, special)
    tokenizer.add_special_tokens(SPECIAL)
    value = json.loads(tokenizer.to_str())
    if definition is not None:
        definition(value)
    write_files(directory, value, settings, **files)
    return directory


def write_files(directory: Path, definition: dict[str, Any], settings: dict[str, Any], **files: Any) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 400}
    config |= {"max_position_embeddings": WINDOW, "type_vocab_size": 2, "pad_token_id": 0, "id2label": {"0": "L"}}
    files = {"config": config | files.pop("config", {}), "tokenizer": definition, "tokenizer_config": settings, **files}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))


def ours(tokens: PairTokens) -> list[tuple[list[int], list[int]]]:
    batch = tokens.encode(PAIRS)
    spans = [slice(int(batch.offsets[i]), int(batch.offsets[i + 1])) for i in range(len(PAIRS))]
    return [(batch.input_ids[span].tolist(), batch.token_type_ids[span].tolist()) for span in spans]


def theirs(directory: Path, limit: int) -> list[tuple[list[int], list[int]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    encoded = tokenizer([list(pair) for pair in PAIRS], truncation="longest_first", max_length=limit)
    types = encoded.get("token_type_ids") or [[0] * len(ids) for ids in encoded["input_ids"]]
    return list(zip(encoded["input_ids"], types, strict=True))


def read(directory: Path) -> PairTokens:
    return read_tokens(directory, read_config(directory), None)


def no_added_tokens(definition: dict[str, Any]) -> None:
    definition["added_tokens"] = []


def truncated_left(definition: dict[str, Any]) -> None:
    cut = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    definition["truncation"] = cut


BERT = {"tokenizer_class": "BertTokenizer"}
NONE = {"tokenizer_class": "PreTrainedTokenizerFast"}
UNUSED = {"content": "[unused]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
ADDED = {str(WORDS.index("museum")): {**UNUSED, "content": "museum", "special": False}}
CASES: dict[str, dict[str, Any]] = {
    "lower case by the class's default": {
        "settings": BERT,
        "definition": lambda d: d["normalizer"].update(lowercase=False),
    },
    "upper case": {"settings": {**BERT, "do_lower_case": False}},
    "accents kept": {"settings": {**BERT, "strip_accents": False}},
    "accents stripped of cased texts": {"settings": {**BERT, "do_lower_case": False, "strip_accents": True}},
    "Chinese words": {"settings": {**BERT, "tokenize_chinese_chars": False}},
    "the class of the model type": {"settings": {"do_lower_case": False}},
    "the class of config.json": {
        "settings": {"do_lower_case": False},
        "config": {"tokenizer_class": "ElectraTokenizer"},
    },
    "a class that leaves the normalizer": {"settings": {**NONE, "do_lower_case": False}},
    "MPNet's class leaves Chinese": {
        "settings": {
            "tokenizer_class": "MPNetTokenizer", "do_lower_case": False, "tokenize_chinese_chars": False,
            **{f"{role}_token": text for role, text in
               {"cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "eos": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}.items()},
        },
    },
    "truncation from the left": {"settings": {**NONE, "truncation_side": "left"}},
    "truncation from the left in tokenizer.json": {"settings": NONE, "definition": truncated_left},
    "tokenizer_config.json before it": {
        "settings": {**NONE, "truncation_side": "right"},
        "definition": truncated_left,
    },
    "no token types": {"settings": {**NONE, "model_input_names": ["input_ids", "attention_mask"]}},
    "no token types by the class's default": {"settings": {"tokenizer_class": "DistilBertTokenizer"}},
    "token types by name": {
        "settings": {
            "tokenizer_class": "DistilBertTokenizer",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        },
    },
    "a token of added_tokens_decoder": {"settings": {**NONE, "added_tokens_decoder": ADDED}},
    "a token of special_tokens_map.json": {
        "settings": NONE,
        "special_tokens_map": {"additional_special_tokens": ["museum"], "mask_token": {**UNUSED, "content": "[MASK]"}},
    },
    "special_tokens_map.json beside added_tokens_decoder": {
        "settings": {**NONE, "added_tokens_decoder": {}},
        "special_tokens_map": {"additional_special_tokens": ["museum"]},
    },
    "a token of added_tokens.json": {"settings": NONE, "added_tokens": {"<x>": len(WORDS)}},
    "special tokens of the class": {"settings": BERT, "definition": no_added_tokens},
    "special tokens by role": {
        "settings": {**NONE, "mask_token": "[MASK]", "sep_token": {"__type": "AddedToken", **UNUSED, "content": "[SEP]"}},
        "definition": no_added_tokens,
    },
    "special tokens split": {"settings": {**BERT, "split_special_tokens": True}},
    "the old name of the limit": {"settings": {**NONE, "max_len": 9}},
    "the new name before the old one": {"settings": {**NONE, "max_len": 9, "model_max_length": 12}},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_tokens_are_those_of_transformers(tmp_path: Path, case: dict[str, Any]) -> None:
    directory = write(tmp_path, **case)
    tokens = read(directory)
    settings = case["settings"]
    limit = settings.get("model_max_length", settings.get("max_len", WINDOW))
    assert tokens.max_length == limit
    assert ours(tokens) == theirs(directory, limit)
    refuse_other_tokens(directory, tokens, read_config(directory))


VOCABULARIES: dict[str, dict[str, Any]] = {
    "by the class": {"settings": BERT},
    "by the model type": {"settings": {}},
    "upper case": {"settings": {**BERT, "do_lower_case": False}},
    "accents and Chinese": {"settings": {**BERT, "strip_accents": False, "tokenize_chinese_chars": False}},
    "ELECTRA": {"settings": {"tokenizer_class": "ElectraTokenizer"}},
    "DistilBERT": {"settings": {"tokenizer_class": "DistilBertTokenizer"}},
    "special tokens as objects": {
        "settings": {**BERT, "cls_token": {**UNUSED, "__type": "AddedToken", "content": "[CLS]"}},
    },
    "added tokens": {"settings": BERT, "added_tokens": {"museums here": len(WORDS)}},
}


@pytest.mark.parametrize("case", VOCABULARIES.values(), ids=list(VOCABULARIES))
@pytest.mark.parametrize("end", ["\n", "", "\r\n"], ids=["lines", "unended", "windows"])
def test_a_vocabulary_alone_gives_the_tokens_of_transformers(tmp_path: Path, case: dict[str, Any], end: str) -> None:
    directory = write(tmp_path, **case)
    (directory / "tokenizer.json").unlink()
    separator = end or "\n"
    (directory / "vocab.txt").write_bytes((separator.join(WORDS) + end).encode())
    tokens = read(directory)
    assert ours(tokens) == theirs(directory, WINDOW)
    refuse_other_tokens(directory, tokens, read_config(directory))


@pytest.mark.parametrize(
    ("settings", "content", "words"),
    [
        ({"tokenizer_class": "MPNetTokenizer"}, b"a\nb", r"has no tokenizer\.json: save a fast tokenizer there"),
        (BERT, b"a\nb", r"vocab\.txt has no '\[UNK\]' among its 2 words: it is no WordPiece file"),
        (BERT, b"\xff\xfe", r"vocab\.txt cannot be read as UTF-8"),
    ],
)
def test_a_vocabulary_of_another_kind_is_refused(
    tmp_path: Path, settings: dict[str, Any], content: bytes, words: str
) -> None:
    directory = write(tmp_path, settings=settings)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_bytes(content)
    with pytest.raises(ModelSourceError, match=words):
        read(directory)


@pytest.mark.parametrize("stated", [True, False, None])
@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("name", ["RobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_prefix_space_is_that_of_transformers(tmp_path: Path, name: str, written: bool, stated: bool | None) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "Ġe"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("Ġ", "e")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=written)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(words[:5])
    settings: dict[str, Any] = {"tokenizer_class": name}
    settings |= {"pad_token": "<pad>"} if stated is None else {"add_prefix_space": stated, "pad_token": "<pad>"}
    write_files(tmp_path, json.loads(tokenizer.to_str()), settings)
    assert ours(read(tmp_path)) == theirs(tmp_path, WINDOW)


def test_what_no_setting_explains_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    # This class frames pairs by its own rules, whatever tokenizer.json says.
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    directory = write(tmp_path, settings={**settings, "pad_token": "[PAD]"})
    with pytest.raises(
        ModelSourceError, match=r"transformers gives the pair \('How many .*', ''\) other token ids than"
    ):
        refuse_other_tokens(directory, read(directory), read_config(directory))


def test_a_tokenizer_that_transformers_cannot_load_is_not_compared(tmp_path: Path) -> None:
    directory = write(tmp_path, settings={"tokenizer_class": "TheirOwnTokenizer"})
    refuse_other_tokens(directory, read(directory), read_config(directory))


def test_texts_that_are_lower_cased_first_are_compared_so(tmp_path: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    files = {"modules": modules, "sentence_bert_config": {"do_lower_case": True}}
    directory = write(tmp_path, settings={**BERT, "do_lower_case": False}, **files)
    tokens = read(directory)
    assert tokens.encode([("Museum", "b")]).input_ids.tolist()[1] == WORDS.index("museum")
    refuse_other_tokens(directory, tokens, read_config(directory))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"truncation_side": "middle"}, "truncation_side of tokenizer_config.json is 'middle': it is left or right"),
        ({"added_tokens_decoder": {"x": 3}}, "files beside .* are damaged"),
        ({"tokenizer_class": "RoFormerTokenizer"}, "splits words with jieba"),
        (
            {"split_special_tokens": True, "additional_special_tokens": ["<beyond>"]},
            "'<beyond>' is not: set it to false",
        ),
    ],
    ids=["side", "damaged", "jieba", "split"],
)
def test_settings_that_cannot_be_served_are_refused_in_a_sentence(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelSourceError, match=reason):
        read(write(tmp_path, settings={**NONE, **settings}))


def test_classes_are_those_of_transformers() -> None:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    fast = {name for pair in TOKENIZER_MAPPING_NAMES.values() for name in pair if name and name.endswith("Fast")}
    classes = {name.removesuffix("Fast"): getattr(transformers, name) for name in sorted(fast)}
    # Those of images and sound, of layouts and of machine translation read no pairs of texts.
    others = ("CLIP", "Layout", "SeamlessM4T", "Udop", "Whisper", "DPR", "RoFormer")
    plain = {name: kind for name, kind in classes.items() if not name.startswith(others) or name == "LayoutLMTokenizer"}
    assert {name for name, kind in plain.items() if "token_type_ids" not in kind.model_input_names} == WITHOUT_TYPES
    sources = {name: inspect.getsource(kind.__init__) for name, kind in plain.items()}
    rewriting = {name for name, text in sources.items() if '"lowercase"' in text}
    assert rewriting == REWRITING
    assert {name for name in rewriting if "handle_chinese_chars" not in sources[name]} == KEEPING_CHINESE
    for name, types in CLASSES.items():
        for model_type in types:
            assert f"{name}Fast" in TOKENIZER_MAPPING_NAMES[model_type], model_type


def test_padding_ids_are_those_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    known = {model_type: number for number, types in _PADDING.items() for model_type in types}
    others = {"layoutlmv3", "perceiver"}  # of layouts and of bytes
    names = sorted(set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES) - others)
    own = {name: getattr(CONFIG_MAPPING[name](), "pad_token_id", known.get(name, 0)) for name in names}
    assert {name: known.get(name, 0) for name in names} == own
