"""Build a tokenizer.json from a vocab.txt, as transformers does for a checkpoint that has only that.

Source: `BertConverter` (convert_slow_tokenizer.py) and `load_vocab` (models/bert/tokenization_bert.py) of
https://github.com/huggingface/transformers, v4.57.6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossrank.bundles.layout import VOCABULARY, why_no_tokenizer
from crossrank.checkpoints.tokenizer_classes import BERT_TOKENS
from crossrank.checkpoints.tokenizer_settings import TokenizerFiles
from crossrank.errors import ModelSourceError

_CLASSES = {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"}


def definition_from_vocabulary(directory: Path, files: TokenizerFiles) -> dict[str, Any]:
    """Return the tokenizer.json of a WordPiece vocabulary, one word a line, before any settings are applied.

    Args:
        directory: Directory with vocab.txt.
        files: Files beside it.

    Raises:
        ModelSourceError: The tokenizer is of another class, or the file is not a WordPiece vocabulary.
    """
    if files.class_name not in _CLASSES:
        raise ModelSourceError(why_no_tokenizer(str(directory)))
    path = directory / VOCABULARY
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelSourceError(f"{path} cannot be read as UTF-8 ({error}): download it again") from error
    vocabulary = {word: number for number, word in enumerate(lines)}
    texts: dict[str, str] = {}
    for role, default in BERT_TOKENS.items():
        named = files.settings.get(role) or files.special.get(role) or default
        texts[role] = str(named["content"] if isinstance(named, dict) and "content" in named else named)
    missing = [text for role, text in texts.items() if role != "mask_token" and text not in vocabulary]
    if missing:
        raise ModelSourceError(f"{path} has no {missing[0]!r} among its {len(lines)} words: it is no WordPiece file")
    cls, sep = texts["cls_token"], texts["sep_token"]
    special = {text: {"id": text, "ids": [vocabulary[text]], "tokens": [text]} for text in (cls, sep)}
    single = [_special(cls, 0), _sequence("A", 0), _special(sep, 0)]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, _sequence("B", 1), _special(sep, 1)],
            "special_tokens": special,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": texts["unk_token"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _special(text: str, segment: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": segment}}


def _sequence(name: str, segment: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": segment}}
