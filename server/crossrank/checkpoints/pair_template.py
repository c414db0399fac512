"""Read from tokenizer.json how a pair is framed: the special tokens around query and document, and the segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import PairTemplate
from crossrank.errors import ModelSourceError

_PROBES = (("what is bm25", "BM25 ranks documents."), ("naïve café", "北京 — 3.5 million"), ("a", "b"))


def read_template(definition: dict[str, Any], path: Path) -> PairTemplate:
    """Return the pair template of a TemplateProcessing, BertProcessing or RobertaProcessing, also inside a Sequence.

    Source: https://huggingface.co/docs/tokenizers/api/post-processors

    Raises:
        ModelSourceError: The post-processor is of another type, or damaged.
    """
    processor = definition.get("post_processor") or {}
    candidates = processor.get("processors", []) if processor.get("type") == "Sequence" else [processor]
    for candidate in candidates:
        kind = candidate.get("type")
        try:
            if kind == "TemplateProcessing":
                return _from_template_processing(candidate)
            if kind in ("BertProcessing", "RobertaProcessing"):
                cls, sep = int(candidate["cls"][1]), int(candidate["sep"][1])
                roberta = kind == "RobertaProcessing"
                middle = [sep, sep] if roberta else [sep]
                return PairTemplate(start=[cls], middle=middle, end=[sep], segments=(0, 0 if roberta else 1))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelSourceError(f"{path}: its {kind} is damaged ({error!r}): download it again") from error
    raise ModelSourceError(
        f"{path} does not say how a pair is framed (post_processor {processor.get('type')}): a cross-encoder's "
        "tokenizer has a TemplateProcessing, BertProcessing or RobertaProcessing"
    )


def _from_template_processing(processor: dict[str, Any]) -> PairTemplate:
    special = processor["special_tokens"]
    parts: list[list[int]] = [[]]
    order: list[str] = []
    types: dict[str, int] = {}
    for piece in processor["pair"]:
        if "SpecialToken" in piece:
            parts[-1] += special[piece["SpecialToken"]["id"]]["ids"]
        else:
            name = piece["Sequence"]["id"]
            order.append(name)
            types[name] = int(piece["Sequence"]["type_id"])
            parts.append([])
    if order != ["A", "B"]:
        raise ValueError(f"the pair is {order}, not query then document")
    return PairTemplate(start=parts[0], middle=parts[1], end=parts[2], segments=(types["A"], types["B"]))


def check_template(tokenizer: Any, template: PairTemplate, path: Path) -> None:
    """Check that pairs assembled by the template are those of the tokenizer itself.

    Raises:
        ModelSourceError: They differ.
    """
    for query, document in _PROBES:
        head = tokenizer.encode(query, add_special_tokens=False).ids
        tail = tokenizer.encode(document, add_special_tokens=False).ids
        first = [*template.start, *head, *template.middle]
        second = [*tail, *template.end]
        types = [template.segments[0]] * len(first) + [template.segments[1]] * len(second)
        own = tokenizer.encode(query, document)
        if own.ids != first + second or own.type_ids != types:
            raise ModelSourceError(
                f"{path} frames pairs in a way that no pair template expresses: {own.ids} with segments {own.type_ids} "
                f"where {first + second} with {types} was expected"
            )
