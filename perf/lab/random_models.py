"""Make models of the catalog's shapes with seeded random weights, to measure speed: their scores mean nothing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import is_bundle
from crossrank.bundles.catalog import CatalogModel
from crossrank.errors import SetupError
from crossrank.resolve import builtin_path

_SEED = 0
# Documents on which the export compares its graph with PyTorch: few, as the tests of the export compare more.
_PARITY_DOCUMENTS = 2
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_VOCABULARY = 30522  # of BERT-uncased, as all nine models and the built-in tokenizer have


def random_bundle(model: CatalogModel, directory: Path) -> Path:
    """Return a bundle of the model's shape below a directory, made there if it does not exist yet.

    Raises:
        SetupError: PyTorch or transformers is not installed.
    """
    out = directory / model.short_name
    if is_bundle(out):
        return out
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="crossrank-random-") as folder:
        checkpoint = Path(folder) / model.short_name
        write_checkpoint(model, checkpoint)
        _export(checkpoint, out)
    return out


def write_checkpoint(model: CatalogModel, out: Path) -> None:
    """Write a Hugging Face directory of the model's shape, with the built-in tokenizer.

    Raises:
        SetupError: PyTorch or transformers is not installed.
    """
    try:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification
    except ImportError as error:
        raise SetupError(
            f"models of random weights are made with {error.name}: pip install 'crossrank[export]'"
        ) from None
    embedding = {"embedding_size": model.hidden} if model.model_type == "electra" else {}
    config = AutoConfig.for_model(
        model.model_type,
        num_hidden_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        intermediate_size=model.ffn,
        vocab_size=_VOCABULARY,
        num_labels=1,
        **embedding,
    )
    factory: Any = AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        factory.from_config(config).save_pretrained(out, safe_serialization=True)
    for name in _TOKENIZER_FILES:
        if (builtin_path() / name).is_file():
            shutil.copy(builtin_path() / name, out / name)


def _export(checkpoint: Path, out: Path) -> None:
    from crossrank_export.pipeline import ExportOptions, export_model
    from crossrank_export.sources import find_source

    export_model(find_source(checkpoint), out, ExportOptions(documents=_PARITY_DOCUMENTS))
