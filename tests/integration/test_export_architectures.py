"""Every architecture of the catalogue, in its true shape with seeded random weights, agrees with PyTorch all the way.

Random weights say nothing about ranking quality. `pytest -rP` prints a row of the README's table for each model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.bundles.catalog import MODELS, CatalogModel
from crossrank.engines.openvino import OpenVinoEngine
from crossrank.text.encoding import PairEncoder
from crossrank_export.convert import checkpoint_scorer, load_checkpoint
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.samples import builtin_groups
from crossrank_export.sources import find_source
from tests.checkpoints import write_checkpoint

SMALL = {
    "cross-encoder/ms-marco-TinyBERT-L2-v2",
    "cross-encoder/ms-marco-MiniLM-L2-v2",
    "cross-encoder/ms-marco-TinyBERT-L2",
}
# Share of arithmetic that computing the last layer for one token saves, at least, by number of layers.
SAVED = {2: 0.45, 4: 0.2, 6: 0.13, 12: 0.07}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.model_id, marks=[] if entry.model_id in SMALL else [pytest.mark.slow])
        for entry in MODELS
        if entry.model_id.startswith("cross-encoder/")
    ],
)
def test_an_architecture_agrees_with_pytorch_in_every_precision_and_engine(
    entry: CatalogModel, tmp_path: Path, builtin: Bundle
):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", short_name(entry), seed=MODELS.index(entry))
    shutil.copyfile(builtin.file("tokenizer.json"), checkpoint / "tokenizer.json")  # the nine models' own
    options = ExportOptions(["fp32", "fp16", "int8"], documents=8)
    bundle = export_model(find_source(checkpoint, kind="safetensors"), tmp_path / "bundle", options)
    manifest = bundle.manifest
    standard = [graph for graph in manifest.graphs if graph.operators == "onnx"]
    parity = {graph.precision: graph.parity["builtin"] for graph in standard}
    assert parity["fp32"]["logit_range"] > 0.1  # five times the loosest threshold below
    assert parity["fp32"]["max_abs_delta"] <= 1e-4
    assert parity["fp16"]["max_abs_delta"] <= 2e-2
    fused = manifest.graph("fp16", "onnxruntime")
    assert fused.operators == "onnxruntime"
    assert fused.parity["builtin"]["max_abs_delta"] <= 2e-2
    assert manifest.passes[-1]["detail"].startswith(fused_detail(entry.layers))
    before, after = manifest.cost["before"], manifest.cost["after"]
    saved = 1 - after["mflop"] / before["mflop"]
    assert saved >= SAVED[entry.layers]
    assert [tensor.name for tensor in manifest.graph("fp32").inputs] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    openvino = openvino_delta(bundle, checkpoint)
    assert openvino <= 1e-4
    print(row(entry, manifest.cost, parity, openvino))


def fused_detail(layers: int) -> str:
    """All layers but the last one have an attention block, and all of them two residual sums."""
    return f"{layers - 1} attention blocks, {2 * layers} normalizations of residual sums and the embeddings are"


def short_name(entry: CatalogModel) -> str:
    return entry.model_id.removeprefix("cross-encoder/ms-marco-")


def openvino_delta(bundle: Bundle, checkpoint: Path) -> float:
    """Return the largest difference between OpenVINO in fp32 and PyTorch."""
    group = builtin_groups(bundle.manifest.max_length, documents=4)[0]
    batch = PairEncoder(bundle).encode(group.query, group.documents).batch
    logits = checkpoint_scorer(load_checkpoint(checkpoint))(batch)[:, 0]
    return float(np.abs(OpenVinoEngine(bundle, "fp32", threads=1).infer(batch) - logits).max())


def row(entry: CatalogModel, cost: dict[str, Any], parity: dict[str, Any], openvino: float) -> str:
    """Return a line of Markdown: model, parameters, nodes, MFLOP a pair, and the agreement of each variant."""
    before, after = cost["before"], cost["after"]
    variants = [f"{parity[name]['max_abs_delta']:.1e} / {parity[name]['kendall_tau']:.3f}" for name in parity]
    cells = [
        short_name(entry),
        f"{before['parameters'] / 1e6:.1f} M",
        f"{before['nodes']} -> {after['nodes']}",
        f"{before['mflop']:,.0f} -> {after['mflop']:,.0f} (-{1 - after['mflop'] / before['mflop']:.0%})",
        f"{parity['fp32']['logit_range']:.1f}",
        *variants,
        f"{openvino:.1e}",
    ]
    return f"| {' | '.join(cells)} |"
