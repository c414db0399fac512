"""What one call does before and after its pairs are scored: for threads that wait and for event loops alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.cross_encoder.activations import Activation
from crossrank.cross_encoder.inputs import Group, as_documents, as_pairs, group_documents, group_pairs
from crossrank.cross_encoder.results import Prediction, Scored, checked_top_k, converted, ranked


@dataclass(frozen=True)
class CallOptions:
    """What all calls share.

    Attributes:
        prompt: Text before each query.
        activation: What makes scores of logits.
    """

    prompt: str
    activation: Activation

    def scores(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """Return the scores of logits, of none without asking the function."""
        return self.activation(logits) if len(logits) else logits


def prediction(
    inputs: Any, options: CallOptions, to_numpy: bool, to_tensor: bool, return_details: bool
) -> tuple[Callable[[], list[Group]], Callable[[Scored], Any]]:
    """Return what makes the groups of a call of `predict`, and what makes its result."""
    pairs, single = as_pairs(inputs)

    def finish(scored: Scored) -> Any:
        scores = converted(options.scores(scored.logits), to_numpy=to_numpy, to_tensor=to_tensor)
        if not return_details:
            return scores[0] if single else scores
        if single:
            return Prediction(scores[0], scored.truncated[0], scored.tokens[0])
        return Prediction(scores, scored.truncated, scored.tokens)

    return partial(group_pairs, pairs, options.prompt), finish


def ranking(
    queries: Sequence[Any],
    documents: Sequence[Any],
    options: CallOptions,
    top_k: Any,
    return_documents: bool,
    return_details: bool,
) -> tuple[Callable[[], list[Group]], Callable[[Scored], list[list[dict[str, Any]]]]]:
    """Return what makes the groups of a call of `rank_many`, and what makes its result."""
    most = checked_top_k(top_k)
    if len(queries) != len(documents):
        raise ValueError(f"there are {len(queries)} queries and {len(documents)} lists of documents: give one for each")
    names = ["documents"] if len(queries) == 1 else [f"documents[{i}]" for i in range(len(queries))]
    lists = [as_documents(own, name) for own, name in zip(documents, names, strict=True)]

    def prepare() -> list[Group]:
        return [
            group_documents(query, own, options.prompt, name)
            for query, own, name in zip(queries, lists, names, strict=True)
        ]

    def finish(scored: Scored) -> list[list[dict[str, Any]]]:
        scores = options.scores(scored.logits)
        results, start = [], 0
        for own in lists:
            part = slice(start, start := start + len(own))
            details = (scored.truncated[part], scored.tokens[part]) if return_details else None
            results.append(ranked(scores[part], own, most, return_documents=return_documents, details=details))
        return results

    return prepare, finish
