"""Read a model's tokenizer: how it frames a pair, the ids of its special tokens, and the maximum length of a pair.

Only the `tokenizers` library is used; `tokenizer_settings` does the part of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossrank.bundles.bundle import TOKENIZER, PairTemplate
from crossrank.bundles.layout import CONFIG, MODULES, VOCABULARY, Kind, read_object
from crossrank.checkpoints.config import ModelConfig, read_config
from crossrank.checkpoints.families import is_own_class
from crossrank.checkpoints.pair_template import check_template, read_template
from crossrank.checkpoints.tokenizer_settings import (
    TokenizerFiles,
    apply_settings,
    split_special_tokens,
    truncation_side,
)
from crossrank.checkpoints.vocabulary import definition_from_vocabulary
from crossrank.errors import ModelSourceError
from crossrank.packed import PairBatch, offsets_of
from crossrank.reasons import reason_of
from crossrank.request import TruncationDirection

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", CONFIG)
_ROLES = ("cls", "sep", "pad", "unk", "mask", "bos", "eos")
# transformers writes about 1e30 where a tokenizer has no limit.
_NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class PairTokens:
    """Tokenizer of a model, and how it frames a pair.

    Attributes:
        definition: tokenizer.json as transformers uses it, without truncation and padding, which `crossrank.text` and
            the engines do.
        template: Special tokens around query and document.
        special_token_ids: Ids by role; `pad` is always present.
        max_length: Maximum tokens of a pair, special tokens included.
        truncation_side: Side of a text that is cut.
        lowered: Whether texts are lower-cased first, as sentence-transformers does.
    """

    definition: dict[str, Any]
    template: PairTemplate
    special_token_ids: dict[str, int]
    max_length: int
    truncation_side: TruncationDirection = "right"
    lowered: bool = False

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self.special_token_ids["pad"]

    def write(self, directory: Path) -> None:
        """Write tokenizer.json into the bundle."""
        text = json.dumps(self.definition, ensure_ascii=False, separators=(",", ":"))
        (directory / TOKENIZER).write_text(text, encoding="utf-8")

    def encode(self, pairs: list[tuple[str, str]], max_length: int | None = None) -> PairBatch:
        """Tokenize pairs with the `tokenizers` library, the reference implementation.

        A pair that is too long loses tokens of the longer text first.

        Args:
            pairs: (query, document) each.
            max_length: Maximum tokens of a pair; None, or more than the model's, is the model's maximum.
        """
        tokenizer = _tokenizer(self.definition)
        longest = min(max_length or self.max_length, self.max_length)
        tokenizer.enable_truncation(longest, strategy="longest_first", direction=self.truncation_side)
        encodings = tokenizer.encode_batch(pairs)
        types = np.concatenate([np.array(encoding.type_ids, np.int32) for encoding in encodings])
        if self.template.segments == (0, 0):
            types[:] = 0  # the tokenizer may give other types, which this model never gets
        ids = np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings])
        return PairBatch(ids, types, offsets_of([len(encoding.ids) for encoding in encodings]))


def read_tokens(directory: Path, config: ModelConfig, max_length: int | None) -> PairTokens:
    """Read tokenizer.json (or vocab.txt) and its companions, and check the template against the tokenizer itself.

    Args:
        directory: Directory with tokenizer.json (or the vocab.txt of a BERT), config.json and optional companions.
        config: Configuration of the model; its window, segments and padding id are used.
        max_length: The user's maximum of tokens of a pair; None is the whole window.

    Raises:
        ModelSourceError: The tokenizer is unreadable or frames no pairs, or `max_length` does not fit the window.
    """
    files = TokenizerFiles(*(_read(directory, name) for name in _BESIDE))
    path, definition = _read_definition(directory, files)
    modules = _read(directory, "sentence_bert_config.json") if (directory / MODULES).is_file() else {}
    side = truncation_side(definition, files.settings)
    definition["truncation"] = None
    definition["padding"] = None
    try:
        apply_settings(_tokenizer(definition, path), definition, files)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelSourceError(
            f"the files beside {path} are damaged ({reason_of(error)}): download them again"
        ) from error
    tokenizer = _tokenizer(definition, path)
    _refuse_added_tokens(tokenizer, config.architecture.vocab_size, path)
    template = read_template(definition, path)
    check_template(tokenizer, template, path)
    if not files.feeds_types or config.segment_types == 1:
        template = template.model_copy(update={"segments": (0, 0)})
    special = _special_token_ids(tokenizer, template, config, [files.settings, files.special], directory)
    split_special_tokens(definition, files.settings)
    lowered = bool(modules.get("do_lower_case"))
    if lowered:
        _lower_first(definition)
    window = _max_length(
        config.window, [files.max_length, modules.get("max_seq_length")], max_length, template, directory
    )
    return PairTokens(definition, template, special, window, side, lowered)


def check_source(directory: Path, kind: Kind, *, is_known_class: Callable[[str, str], bool] = is_own_class) -> None:
    """Refuse an unsuitable model by its small files, before its weights are downloaded or read.

    Args:
        directory: Directory with config.json, tokenizer.json and the files beside them.
        kind: Form of the model.
        is_known_class: See `read_config`.

    Raises:
        ModelSourceError: See `read_config` and `read_tokens`.
    """
    config = read_config(directory, kind, is_known_class=is_known_class)
    if config.window is not None:  # without a window, the user must give a maximum, which is not known here
        read_tokens(directory, config, None)


def _read(directory: Path, name: str) -> dict[str, Any]:
    """Read one of the tokenizer's files; an absent file beside tokenizer.json is empty."""
    if name != TOKENIZER and not (directory / name).is_file():
        return {}
    return read_object(name, str(directory), lambda file: (directory / file).read_bytes())


def _read_definition(directory: Path, files: TokenizerFiles) -> tuple[Path, dict[str, Any]]:
    """Return the tokenizer's file and the content of tokenizer.json, built from vocab.txt if only that is present."""
    if (directory / TOKENIZER).is_file() or not (directory / VOCABULARY).is_file():
        return directory / TOKENIZER, _read(directory, TOKENIZER)
    return directory / VOCABULARY, definition_from_vocabulary(directory, files)


def _lower_first(definition: dict[str, Any]) -> None:
    """Lower-case texts before any other step, as sentence-transformers does if its configuration says so."""
    before = [definition["normalizer"]] if definition.get("normalizer") else []
    definition["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *before]}


def _refuse_added_tokens(tokenizer: Any, embeddings: int, path: Path) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings."""
    beyond = sorted((number, text) for text, number in tokenizer.get_vocab().items() if number >= embeddings)
    if beyond:
        count, (last, _) = len(beyond), beyond[-1]
        raise ModelSourceError(
            f"{path} has token ids up to {last}, the model has {embeddings} embeddings: {count} tokens, the first "
            f"{beyond[0][1]!r}, were added without resizing the embeddings. Give the tokenizer that the model was "
            "trained with, or the model after resize_token_embeddings() and training"
        )


def _tokenizer(definition: dict[str, Any], path: Path | None = None) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelSourceError(
            f"{path} is not a fast tokenizer that this version of tokenizers reads ({error}): save it again with "
            "transformers' AutoTokenizer(use_fast=True)"
        ) from error


def _special_token_ids(
    tokenizer: Any, template: PairTemplate, config: ModelConfig, companions: list[dict[str, Any]], directory: Path
) -> dict[str, int]:
    """Return the special token ids by role, from the companions, else from the template.

    The padding id is that of config.json: the model may find the end of a text, or count positions, by that id.

    Raises:
        ModelSourceError: No padding token is named, or only one that frames pairs.
    """
    found: dict[str, int] = {}
    for role in _ROLES:
        for companion in companions:
            token = companion.get(f"{role}_token")
            text = token.get("content") if isinstance(token, dict) else token
            number = tokenizer.token_to_id(text) if isinstance(text, str) else None
            if number is not None:
                found[role] = number
    if template.start:
        found.setdefault("cls", template.start[0])
    if template.end:
        found.setdefault("sep", template.end[-1])
    framing = {*template.start, *template.middle, *template.end}
    if config.pad_token_id is not None:
        found["pad"] = config.pad_token_id
    elif found.get("pad") is None or found["pad"] in framing:
        raise ModelSourceError(
            f"{directory} has no padding token, neither in config.json nor, apart from those around a pair, in its "
            "tokenizer, and pairs of unlike length are scored together: set pad_token_id in config.json to the id of a "
            "token that is in no text"
        )
    return found


def _max_length(window: int | None, stated: list[Any], cap: int | None, template: PairTemplate, directory: Path) -> int:
    limits = [window] if window is not None else []
    limits += [int(limit) for limit in stated if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    if not limits and cap is None:
        raise ModelSourceError(f"{directory} states no window: say how many tokens a pair may have with --max-length")
    own = min(limits) if limits else cap
    assert own is not None
    least = template.special_tokens + 2
    if own < least:
        raise ModelSourceError(
            f"{directory} has a window of {own} tokens, and a pair has at least {least}: max_position_embeddings of "
            "config.json or model_max_length of tokenizer_config.json is wrong"
        )
    if cap is None:
        return own
    if not least <= cap <= own:
        raise ModelSourceError(f"--max-length {cap} does not fit {directory}: give {least} to {own} tokens")
    return cap
