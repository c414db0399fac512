"""Published scores of the real models, compared wherever their weights are found.

CROSSRANK_WEIGHTS names a directory with a folder for each model, in any spelling of its id (`ms-marco-TinyBERT-L-2-v2`,
`cross-encoder/ms-marco-TinyBERT-L2-v2`); else huggingface_hub's own cache is looked into. Weights that are nowhere are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.bundles.catalog import canonical_model_id
from crossrank.bundles.hub import find_in_hub_cache
from crossrank.bundles.hub_ref import parse_hub_ref
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.text.encoding import PairEncoder
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from tests.conftest import SHARED

FACTS = SHARED / "facts" / "golden_scores.json"
# Quantized scores are of graphs that others quantized in their own way.
ROWS = [row for row in json.loads(FACTS.read_text()) if row["precision"].startswith("fp32")] if FACTS.is_file() else []


def model_id(row: dict[str, Any]) -> str:
    return canonical_model_id(row["model"].partition(" ")[0])


def find_weights(name: str) -> Path | None:
    """Return the directory of a model's real files."""
    if root := os.environ.get("CROSSRANK_WEIGHTS"):
        below = [path for depth in ("*", "*/*") for path in sorted(Path(root).glob(f"{depth}/config.json"))]
        for config in below:
            if canonical_model_id(config.parent.name) == name:
                return config.parent
    found = find_in_hub_cache(parse_hub_ref(name), kind="onnx")
    return found[0] if found else None


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {}


def test_the_published_scores_are_at_hand():
    if not FACTS.is_file():
        pytest.skip(f"no published scores at {FACTS}")
    assert {model_id(row) for row in ROWS} >= {"cross-encoder/ms-marco-TinyBERT-L2-v2"}
    assert all(model_id(row).startswith("cross-encoder/") for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['model']}-{i}" for i, row in enumerate(ROWS)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_real_model_gives_its_published_scores(
    row: dict[str, Any], bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
):
    name = model_id(row)
    weights = find_weights(name)
    if weights is None:
        pytest.skip(f"no weights of {name}: set CROSSRANK_WEIGHTS, or download it once")
    if name not in bundles:
        out = tmp_path_factory.mktemp("golden") / "bundle"
        bundles[name] = export_model(find_source(weights), out, ExportOptions())
    bundle = bundles[name]
    batch = PairEncoder(bundle).encode(row["query"], row["passages"]).batch
    logits = OnnxRuntimeEngine(bundle, threads=1).infer(batch)
    if "sigmoid" in row:
        assert 1 / (1 + np.exp(-logits)) == pytest.approx(row["sigmoid"], abs=1e-4)
    else:
        assert logits == pytest.approx(row["logits"], abs=1e-3)
