"""Write `--input-data` files for perf_analyzer: real token ids, a file for each bucket, and text.

Without them it draws random data once and sends it again and again; these files hold every pair of the workload.

Source: https://github.com/triton-inference-server/perf_analyzer/blob/main/docs/input_data.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from crossrank.native.padding import pad
from crossrank.packed import PairBatch
from crossrank_perf.base.workload import Workload


def write_token_rows(path: Path, pairs: PairBatch, length: int, pad_token_id: int, inputs: Sequence[str]) -> None:
    """Write an entry for each pair, padded to `length` tokens; perf_analyzer makes a batch of as many as -b says."""
    ids, types, mask = pad(pairs, length, pad_token_id)
    arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    columns = [arrays[name].tolist() for name in inputs]
    _write(path, [dict(zip(inputs, row, strict=True)) for row in zip(*columns, strict=True)])


def write_texts(path: Path, workload: Workload) -> None:
    """Write an entry for each request: its query and its documents."""
    _write(
        path,
        [
            {
                "QUERY": {"content": [request.query], "shape": [1]},
                "DOCUMENTS": {"content": list(request.documents), "shape": [len(request.documents)]},
            }
            for request in workload.requests
        ],
    )


def _write(path: Path, entries: list[dict[str, object]]) -> None:
    path.write_text(json.dumps({"data": entries}), encoding="utf-8")
