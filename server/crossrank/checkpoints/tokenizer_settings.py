"""Change tokenizer.json as transformers does: files beside it add tokens, and its class may override its normalizer.

Source: https://github.com/huggingface/transformers, v4.57.6: `PreTrainedTokenizerFast.__init__`
(tokenization_utils_fast.py), `PreTrainedTokenizerBase._from_pretrained` (tokenization_utils_base.py) and the classes of
models/*/tokenization_*_fast.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

from crossrank.checkpoints.tokenizer_classes import (
    BERT_TOKENS,
    CLASSES,
    KEEPING_CHINESE,
    KEEPING_PREFIX,
    REWRITING,
    WITH_TYPES_OF_5,
    WITHOUT_TYPES,
)
from crossrank.errors import ModelSourceError
from crossrank.request import TruncationDirection

Settings = dict[str, Any]

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """Contents of the files beside a tokenizer.json; an absent file is empty.

    Attributes:
        settings: Content of tokenizer_config.json.
        special: Content of special_tokens_map.json.
        added: Content of added_tokens.json, ids by text.
        config: Content of the model's config.json.
    """

    settings: Settings
    special: Settings
    added: dict[str, int]
    config: Settings

    @property
    def class_name(self) -> str:
        """Class with which transformers reads the tokenizer, without `Fast`; empty if neither named nor listed here."""
        for named in (self.settings.get("tokenizer_class"), self.config.get("tokenizer_class")):
            if named:
                return str(named).removesuffix("Fast")
        model_type = self.config.get("model_type")
        return next((name for name, types in CLASSES.items() if model_type in types), "")

    @property
    def feeds_types(self) -> bool:
        """Whether transformers gives the model token_type_ids; without them, every token has type 0."""
        names = self.settings.get("model_input_names")
        if isinstance(names, list):
            return "token_type_ids" in names
        if self.is_of_transformers_5:
            return self.class_name in WITH_TYPES_OF_5
        return self.class_name not in WITHOUT_TYPES

    @property
    def is_of_transformers_5(self) -> bool:
        """Whether transformers 5 wrote tokenizer_config.json, which states the back end then.

        A directory is read by the rule of the version that wrote it: its model was trained with that one.
        """
        return "backend" in self.settings or self.class_name == "TokenizersBackend"

    @property
    def max_length(self) -> Any:
        """Value of model_max_length, or of `max_len` as transformers called it before version 3."""
        return (
            self.settings["model_max_length"] if "model_max_length" in self.settings else self.settings.get("max_len")
        )


def apply_settings(tokenizer: Any, definition: dict[str, Any], files: TokenizerFiles) -> None:
    """Change a tokenizer.json in place as its class in transformers does.

    Args:
        tokenizer: Tokenizer that `definition` defines.
        definition: Content of tokenizer.json.
        files: Files beside it.

    Raises:
        ModelSourceError: The class splits words in a way that tokenizer.json cannot express.
    """
    settings, name = files.settings, files.class_name
    if name == "RoFormerTokenizer":
        raise ModelSourceError(
            "a RoFormerTokenizer splits words with jieba, which tokenizer.json does not say: its scores would be others"
        )
    _add_tokens(tokenizer, definition, files)
    normalizer = definition.get("normalizer") or {}
    if name in REWRITING and normalizer.get("type") == "BertNormalizer":
        normalizer["lowercase"] = bool(settings.get("do_lower_case", True))
        normalizer["strip_accents"] = settings.get("strip_accents")
        if name not in KEEPING_CHINESE:
            normalizer["handle_chinese_chars"] = bool(settings.get("tokenize_chinese_chars", True))
    splitter = definition.get("pre_tokenizer") or {}
    prefix = settings.get("add_prefix_space", None if name in KEEPING_PREFIX else False)
    if splitter.get("type") == "ByteLevel" and isinstance(prefix, bool):
        splitter["add_prefix_space"] = prefix


def split_special_tokens(definition: dict[str, Any], settings: Settings) -> None:
    """Treat special tokens in a text as ordinary text, if the settings say so, by changing `definition` in place.

    Raises:
        ModelSourceError: An added token is not in the vocabulary, so that ids of others depend on it.
    """
    if not settings.get("split_special_tokens"):
        return
    kept = [token for token in definition.get("added_tokens", []) if not token.get("special")]
    vocabulary = (definition.get("model") or {}).get("vocab") or {}
    words = vocabulary if isinstance(vocabulary, dict) else {piece[0] for piece in vocabulary}
    beyond = [token["content"] for token in definition.get("added_tokens", []) if token["content"] not in words]
    if beyond:
        raise ModelSourceError(
            f"split_special_tokens of tokenizer_config.json is served where all special tokens are in the vocabulary, "
            f"and {beyond[0]!r} is not: set it to false, where the model was trained so"
        )
    definition["added_tokens"] = kept


def truncation_side(definition: dict[str, Any], settings: Settings) -> TruncationDirection:
    """Return the side of a text that is cut where the text is too long.

    Raises:
        ModelSourceError: The settings state neither left nor right.
    """
    own = (definition.get("truncation") or {}).get("direction", "right")
    side = settings.get("truncation_side", own)
    if not isinstance(side, str) or side.lower() not in ("left", "right"):
        raise ModelSourceError(f"truncation_side of tokenizer_config.json is {side!r}: it is left or right")
    return cast(TruncationDirection, side.lower())


def _add_tokens(tokenizer: Any, definition: dict[str, Any], files: TokenizerFiles) -> None:
    """Add the tokens that the files beside tokenizer.json name, and that it lacks or has with other flags."""
    from tokenizers import AddedToken

    own = {int(token["id"]): _token(token) for token in definition.get("added_tokens") or []}
    named = {**_class_tokens(tokenizer, files.class_name), **files.settings}
    if "added_tokens_decoder" in files.settings:
        listed = {int(number): _token(token) for number, token in files.settings["added_tokens_decoder"].items()}
    else:  # the form of transformers before version 4.34
        named |= files.special
        texts = {_text(token) for token in _named(named)}
        listed = {
            number: AddedToken(text, normalized=text not in texts, special=text in texts)
            for text, number in files.added.items()
        } | own
    present = {repr(token) for token in own.values()}
    missing = [token for _, token in sorted(listed.items(), key=itemgetter(0)) if repr(token) not in present]
    known = {token.content for token in (*own.values(), *missing)}
    by_text = {token.content: token for token in listed.values()}
    roles = [by_text.get(_text(token), token) for token in _named(named)]
    for token in roles:
        if not isinstance(token, str):
            missing.append(token)
        elif token not in known:
            missing.append(AddedToken(token, special=True))
    special = {_text(token) for token in roles}
    for token in missing:
        token.special = token.special or token.content in special
    if any(repr(token) not in present for token in missing):
        tokenizer.add_tokens(missing)
        definition["added_tokens"] = json.loads(tokenizer.to_str())["added_tokens"]


def _class_tokens(tokenizer: Any, class_name: str) -> dict[str, str]:
    """Return the default special tokens of a class, by role, as far as the vocabulary has them."""
    if class_name not in REWRITING - KEEPING_CHINESE:
        return {}
    return {role: text for role, text in BERT_TOKENS.items() if tokenizer.token_to_id(text) is not None}


def _named(settings: dict[str, Any]) -> Iterator[Any]:
    """Yield the special tokens that settings name, each a str or an AddedToken."""
    more = settings.get("additional_special_tokens") or []
    extra = settings.get("extra_special_tokens") or {}
    values = [settings.get(f"{role}_token") for role in _ROLES]
    values += [*(more if isinstance(more, list) else []), *(extra.values() if isinstance(extra, dict) else extra)]
    for value in values:
        if isinstance(value, dict):
            yield _token({"special": True, **value})
        elif isinstance(value, str):
            yield value


def _text(token: Any) -> str:
    """Return the text of a token that is a str or an AddedToken."""
    return str(getattr(token, "content", token))


def _token(token: dict[str, Any]) -> Any:
    from tokenizers import AddedToken

    return AddedToken(**{name: token[name] for name in _FLAGS if name in token})
