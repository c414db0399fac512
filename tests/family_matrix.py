"""Families, numbers of labels and roads to a bundle: what is exported, and what PyTorch says of it.

Each family has two numbers of labels at least, and each number several families. BERT in the native engine's true
widths has two and three labels, of which each is the score once.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Source
from crossrank.checkpoints.convert import bundle_from_checkpoint
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from tests import odd_texts
from tests.checkpoints import write_family

WINDOW = 128


@dataclass(frozen=True)
class Checkpoint:
    """A random model on disk.

    Attributes:
        name: A key of tests/checkpoints.
        num_labels: Labels of the classifier.
        changes: Fields of the config to change.
        variant: Tells checkpoints of one family apart.
        segments: See write_family.
    """

    name: str
    num_labels: int
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""
    segments: bool = True

    def __str__(self) -> str:
        return f"{self.name}{self.variant}-{self.num_labels}"


@dataclass(frozen=True)
class Member:
    """A bundle of the matrix.

    Attributes:
        checkpoint: What it is made of.
        label: Which logit is the score.
        road: safetensors through PyTorch, the file that optimum writes, or safetensors without PyTorch.
    """

    checkpoint: Checkpoint
    label: int = 0
    road: Literal["safetensors", "onnx", "built"] = "safetensors"

    def __str__(self) -> str:
        label = f"-label-{self.label}" if self.checkpoint.num_labels > 1 else ""
        return f"{self.checkpoint}{label}-{self.road}"


_V3 = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
_TRUE_WIDTHS = {"TinyBERT-L2-v2": "-128", "TinyBERT-L4": "-312", "MiniLM-L2-v2": "-384"}

FAMILIES = [
    Member(Checkpoint("bert", 1)),
    Member(Checkpoint("bert", 2), 1, "onnx"),
    Member(Checkpoint("bert", 2), 0, "built"),
    Member(Checkpoint("bert", 3, variant="-one-segment", segments=False), 1),
    Member(Checkpoint("bert", 3, variant="-one-segment", segments=False), 2, "built"),
    Member(Checkpoint("electra", 1), road="onnx"),
    Member(Checkpoint("electra", 3), 1),
    Member(Checkpoint("electra", 3), 2, "built"),
    Member(Checkpoint("roberta", 1)),
    Member(Checkpoint("roberta", 2), 0, "onnx"),
    Member(Checkpoint("roberta", 2), 1, "built"),
    Member(Checkpoint("xlm-roberta", 1), road="onnx"),
    Member(Checkpoint("xlm-roberta", 1), road="built"),
    Member(Checkpoint("xlm-roberta", 3), 2),
    Member(Checkpoint("mpnet", 2), 1),
    Member(Checkpoint("mpnet", 3), 0, "onnx"),
    Member(Checkpoint("mpnet", 3), 2, "built"),
    Member(Checkpoint("distilbert", 1)),
    Member(Checkpoint("distilbert", 2), 1, "onnx"),
    Member(Checkpoint("distilbert", 2), 0, "built"),
    Member(Checkpoint("deberta-v2", 1, _V3, "-as-v3")),
    Member(Checkpoint("deberta-v2", 3), 2, "onnx"),
    Member(Checkpoint("modernbert", 1, {"classifier_pooling": "mean"}, "-mean")),
    Member(Checkpoint("modernbert", 2, {"classifier_pooling": "cls"}, "-cls"), 1, "onnx"),
]
NATIVE = [
    Member(Checkpoint(name, num_labels, {"num_hidden_layers": 2}, width), label, "safetensors" if label else "onnx")
    for name, width in _TRUE_WIDTHS.items()
    for num_labels in (2, 3)
    for label in range(num_labels)
] + [Member(Checkpoint(name, 2, {"num_hidden_layers": 2}, width), 1, "built") for name, width in _TRUE_WIDTHS.items()]


@dataclass(frozen=True)
class Expected:
    """What PyTorch and the checkpoint's own tokenizer say of one query.

    Attributes:
        query: The query.
        documents: Its documents.
        logits: float32 [documents, labels].
        truncated: Indices of the documents that lose tokens.
        query_truncated: Whether the query does.
    """

    query: str
    documents: list[str]
    logits: NDArray[np.float32]
    truncated: list[int]
    query_truncated: bool


class Matrix:
    """Writes checkpoints, exports members and asks the references, each once.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.checkpoint = cache(self._checkpoint)
        self.optimum_file = cache(self._optimum_file)
        self.bundle = cache(self._bundle)
        self.expected = cache(self._expected)

    def _checkpoint(self, checkpoint: Checkpoint) -> Path:
        path = self._folder / "checkpoints" / str(checkpoint)
        return write_family(
            path,
            checkpoint.name,
            num_labels=checkpoint.num_labels,
            window=WINDOW,
            segments=checkpoint.segments,
            **checkpoint.changes,
        )

    def _optimum_file(self, checkpoint: Checkpoint) -> Path:
        """Return a directory as `optimum-cli export onnx` leaves it."""
        from optimum.exporters.onnx import main_export

        out = self._folder / "optimum" / str(checkpoint)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of every shape that it reads
            main_export(str(self.checkpoint(checkpoint)), out, task="text-classification", do_validation=False)
        return out

    def _bundle(self, member: Member) -> Path:
        out = self._folder / "bundles" / str(member)
        if member.road == "built":
            out.parent.mkdir(exist_ok=True)
            source = Source(kind="directory", name=str(member))
            directory = self.checkpoint(member.checkpoint)
            bundle_from_checkpoint(directory, ["model.safetensors"], out, source, member.label)
            return out
        directory = (
            self.checkpoint(member.checkpoint) if member.road == "safetensors" else self.optimum_file(member.checkpoint)
        )
        files = find_source(directory, kind=member.road)
        # The name that it is served by: checkpoints have several bundles.
        files = dataclasses.replace(files, source=files.source.model_copy(update={"name": str(member)}))
        label = member.label if member.checkpoint.num_labels > 1 else None
        export_model(files, out, ExportOptions(documents=2, label=label))
        return out

    def _expected(self, checkpoint: Checkpoint) -> list[Expected]:
        """Score one pair at a time, without padding.

        The tokenizer gets lists, as CrossEncoder.predict gives them: with two strings transformers takes an empty
        document for none, and frames the query alone.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        directory = self.checkpoint(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
        found = []
        for query, documents in odd_texts.groups():
            rows, lost = [], []
            for document in documents:
                texts = [query], [document]
                whole = tokenizer(*texts, verbose=False)
                pair = tokenizer(*texts, truncation="longest_first", max_length=WINDOW, return_tensors="pt")
                lost.append([pair.sequence_ids(0).count(part) < whole.sequence_ids(0).count(part) for part in (0, 1)])
                with torch.inference_mode():
                    rows.append(model(**pair).logits[0].numpy())
            truncated = [i for i, (_, document_lost) in enumerate(lost) if document_lost]
            found.append(Expected(query, documents, np.array(rows), truncated, any(of_query for of_query, _ in lost)))
        return found
