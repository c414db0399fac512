"""Prepare the pairs of one call and build its result, for blocking and asynchronous calls alike."""

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
    """Options that all calls share.

    Attributes:
        prompt: Text put before each query.
        activation: Function from logits to scores.
    """

    prompt: str
    activation: Activation

    def scores(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """Return the scores of logits; without logits the activation is not called."""
        return self.activation(logits) if len(logits) else logits


def prediction(
    inputs: Any, options: CallOptions, to_numpy: bool, to_tensor: bool, return_details: bool
) -> tuple[Callable[[], list[Group]], Callable[[Scored], Any]]:
    """Return two functions for a call of `predict`: one makes its groups, the other its result.

    Args:
        inputs: See `CrossEncoder.predict`.
        options: Options that all calls share.
        to_numpy: See `converted`.
        to_tensor: See `converted`.
        return_details: Whether the result is a `Prediction`.

    Raises:
        InvalidInput: `inputs` is neither a pair nor an iterable of pairs. The first function raises it for a pair that
            is not two texts.
    """
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
    """Return two functions for a call of `rank_many`: one makes its groups, the other its result.

    Args:
        queries: Texts.
        documents: The documents of each query.
        options: Options that all calls share.
        top_k: See `CrossEncoder.rank_many`.
        return_documents: See `CrossEncoder.rank_many`.
        return_details: See `CrossEncoder.rank_many`.

    Raises:
        ValueError: The numbers of queries and of lists of documents differ, or `top_k` is negative.
        TypeError: `top_k` is not a whole number, or documents are None.
        InvalidInput: Documents are no iterable. The first function raises it for a query or document that is not a
            text.
    """
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
