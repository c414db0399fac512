"""Compare the tokens of pairs with those of transformers, which reads more files, where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import normalizers

from crossrank.checkpoints.config import ModelConfig
from crossrank.checkpoints.tokens import PairTokens
from crossrank.errors import ModelSourceError

logger = logging.getLogger(__name__)

_QUERY = "How many people live in Berlin?"
_TEXTS = (
    "",
    "Berlin has a population of 3,520,031 registered inhabitants (891.82 km²).",
    "UPPER and Mixed CASE, ÀÉÎÕÜ naïve Zürich ǅ İstanbul ß",
    "北京 museums柏林の博物館 서울 ภาษาไทย",
    "  leading, doubled  and trailing spaces\ttabs\nlines  ",
    "e\u0301 combining, \u200bzero\u200dwidth, \u00adsoft, \ufb01 ligature, ½ ² ™ 😀👍🏽",
    "snake_case don't can't U.S.A. http://a.b/c?d=e&f=1 <b>x</b> ``quoted'' a/b-c",
)
_SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>", "<unk>")
# Tokens of the pairs that are longer than the window; a wider window truncates in the same way.
_CUT_TOKENS = 128
# Number of added tokens that are tried inside a text.
_MOST_ADDED = 32


def refuse_other_tokens(directory: Path, tokens: PairTokens, config: ModelConfig) -> None:
    """Check that unusual pairs get the same tokens as from transformers' AutoTokenizer.

    Nothing is compared where transformers is not installed, or cannot load the tokenizer.

    Args:
        directory: Directory of the model.
        tokens: Tokenization of pairs here.
        config: Configuration of the model, for the sizes of its embeddings.

    Raises:
        ModelSourceError: Tokens differ; the message shows the first ones.
    """
    cut = min(tokens.max_length, _CUT_TOKENS)
    for limit, chosen in ((tokens.max_length, _pairs(tokens)), (cut, _long(cut))):
        theirs = _theirs(directory, chosen, limit)
        if theirs is None:
            return
        _compare(directory, chosen, _ours(tokens, chosen, limit), theirs, config)


def _pairs(tokens: PairTokens) -> list[tuple[str, str]]:
    added = [str(token["content"]) for token in tokens.definition.get("added_tokens", [])]
    words = dict.fromkeys([*_SPECIAL, *added[:_MOST_ADDED]])
    texts = [*_TEXTS, *(f"a {word} b{word}c {word.lower()}" for word in words)]
    if tokens.lowered:
        texts = [normalizers.Lowercase().normalize_str(text) for text in texts]
    query = _QUERY.lower() if tokens.lowered else _QUERY
    return [(query, text) for text in texts] + [(text, query) for text in texts if text.strip()]


def _long(words: int) -> list[tuple[str, str]]:
    """Return pairs longer than a window of so many tokens: by the document, by the query, and by both."""
    counted = " ".join(f"{i} people" for i in range(words))
    # No longer: the tokenizer makes all combinations of the parts that it cuts off.
    return [("museums", counted), (counted, "museums"), (counted, counted[len(counted) // 3 :])]


def _ours(tokens: PairTokens, pairs: list[tuple[str, str]], limit: int) -> list[tuple[list[int], list[int]]]:
    batch = tokens.encode(pairs, limit)
    spans = [slice(int(start), int(stop)) for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False)]
    return [(batch.input_ids[span].tolist(), batch.token_type_ids[span].tolist()) for span in spans]


def _theirs(directory: Path, pairs: Sequence[tuple[str, str]], limit: int) -> Any:
    """Return transformers' encodings of a batch of pairs; None, with a line in the log, where it cannot make them."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return None
    load: Any = AutoTokenizer.from_pretrained
    try:
        tokenizer = load(directory, local_files_only=True, trust_remote_code=False)
        return tokenizer([list(pair) for pair in pairs], truncation="longest_first", max_length=limit)
    except Exception:  # transformers raises many types
        logger.info(
            "%s: transformers does not load its tokenizer, so that no tokens are compared", directory, exc_info=True
        )
        return None


def _compare(
    directory: Path,
    pairs: list[tuple[str, str]],
    ours: list[tuple[list[int], list[int]]],
    theirs: Any,
    config: ModelConfig,
) -> None:
    for i, (pair, (ids, types)) in enumerate(zip(pairs, ours, strict=True)):
        other = theirs["input_ids"][i]
        if max(other) >= config.architecture.vocab_size:
            continue  # no embedding for this token, and so no score
        if ids != other:
            raise ModelSourceError(_difference(directory, pair, "token ids", ids, other))
        # Without types a model takes all tokens for the first type, and some have one type only.
        fed = (
            theirs["token_type_ids"][i] if "token_type_ids" in theirs and config.segment_types != 1 else [0] * len(ids)
        )
        if types != fed:
            raise ModelSourceError(_difference(directory, pair, "token types", types, fed))


def _difference(directory: Path, pair: tuple[str, str], what: str, ours: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = [text if len(text) <= 60 else text[:60] + "..." for text in pair]
    return (
        f"{directory}: transformers gives the pair ({shown[0]!r}, {shown[1]!r}) other {what} than its tokenizer.json "
        f"({theirs[at : at + 8]} against {ours[at : at + 8]} from token {at} on), so that scores would be others: "
        "write tokenizer.json anew with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
