"""Compare tokenizers on one core: they tokenize the texts of the same requests, in turn, request by request."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from crossrank.bundles.bundle import TOKENIZER, Bundle
from crossrank.errors import SetupError
from crossrank.text.encoding import PairEncoder
from crossrank.text.tokenizer import TextTokenizer
from crossrank_perf.base.workload import Request

_Way = Callable[[Request], object]


def compare_tokenizers(
    bundle: Bundle, requests: Sequence[Request], rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure crossrank's tokenizer, its whole encoding of pairs, and the tokenizers library, whose ids it must give.

    Args:
        bundle: Bundle with the tokenizer.
        requests: Requests that each tokenizes in every round.
        rounds: Number of rounds.
        say: Called with the progress.

    Returns:
        Whether the native tokenizer is in use, and for each the passages a second of wall and of CPU time, medians of
        the rounds.

    Raises:
        SetupError: The ids of a text differ from those of the tokenizers library.
    """
    # The tokenizers library would use all cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rust = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
    rust.no_truncation()
    rust.no_padding()
    ours = TextTokenizer(bundle.file(TOKENIZER))
    encoder = PairEncoder(bundle)
    _check_equal(ours, rust, requests)
    ways: dict[str, _Way] = {
        "crossrank, ids": lambda request: ours.tokenize(_texts(request), bundle.manifest.max_length),
        "crossrank, pairs assembled": lambda request: encoder.encode(request.query, list(request.documents)),
        "tokenizers (Rust), ids": lambda request: rust.encode_batch_fast(_texts(request), add_special_tokens=False),
    }
    # [way][round]: seconds of wall and CPU time.
    spent = {name: np.zeros((rounds, 2)) for name in ways}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for request in requests:
            for name, way in ways.items():
                before = np.array([time.perf_counter(), time.process_time()])
                way(request)
                spent[name][number] += np.array([time.perf_counter(), time.process_time()]) - before
    passages = sum(len(request.documents) for request in requests)
    return {
        "native": ours.native,
        "passages": passages,
        "rounds": rounds,
        "tokenizers": [
            {
                "name": name,
                "passages_per_s": round(median(passages / seconds[:, 0])),
                "passages_per_cpu_s": round(median(passages / seconds[:, 1])),
            }
            for name, seconds in spent.items()
        ],
    }


def _texts(request: Request) -> list[str]:
    return [request.query, *request.documents]


def _check_equal(ours: TextTokenizer, rust: Tokenizer, requests: Sequence[Request]) -> None:
    for request in requests:
        texts = _texts(request)
        tokens = ours.tokenize(texts, max(map(len, texts)))
        for i, encoding in enumerate(rust.encode_batch_fast(texts, add_special_tokens=False)):
            if tokens.text(i).tolist() != encoding.ids:
                raise SetupError(
                    f"the token ids of this text differ from those of the tokenizers library: {texts[i]!r}"
                )
