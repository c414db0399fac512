"""The families of encoders whose graph is built here, and where their checkpoints keep each weight.

Weights have the roles of `crossrank.native.weights`, and these beside them:

    embeddings.projection   from the width of the embeddings to that of the layers (ELECTRA)
    attention_bias          [buckets, heads], added to attention scores by distance (MPNet)
    pooler                  the dense layer before the classifier, whatever its family calls it

Source: models/*/modeling_*.py of https://github.com/huggingface/transformers, v4.57.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossrank.checkpoints.activations import ACTIVATIONS
from crossrank.checkpoints.position_bias import BUCKETS

# Roles of a layer, by what transformers' BERT calls them.
_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}
_MPNET_LAYER = {
    **_BERT_LAYER,
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "output": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
_DISTILBERT_LAYER = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "output_norm": "output_layer_norm",
}
_DENSE_HEAD = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}


@dataclass(frozen=True)
class Family:
    """What tells one family of encoders from another.

    Attributes:
        class_name: transformers' class of its cross-encoders.
        prefix: Of the encoder's weights.
        layer: Modules of a layer by role.
        head: Modules after the encoder by role.
        head_activation: Between the two layers of the head.
        layers: Of the encoder, before the number of a layer.
        segment_types: Rows of the segment embeddings where config.json states none; 0 for a family without them.
        counts_padding: Whether positions count from the padding id on, over the tokens that are not padding.
        padding_id: The padding id that the family's code fixes; None where config.json states it.
        embedding_size: Width of the embeddings where config.json states none; None where it is that of the layers.
        attention_bias: Whether attention scores get a bias by distance.
        activation_key: Field of config.json that names the activation of the layers.
        epsilon: Of layer normalizations where the family fixes it; None where config.json states it.
    """

    class_name: str
    prefix: str
    layer: Mapping[str, str] = field(default_factory=lambda: _BERT_LAYER)
    head: Mapping[str, str] = field(default_factory=lambda: _DENSE_HEAD)
    head_activation: str = "tanh"
    layers: str = "encoder.layer"
    segment_types: int = 2
    counts_padding: bool = False
    padding_id: int | None = None
    embedding_size: int | None = None
    attention_bias: bool = False
    activation_key: str = "hidden_act"
    epsilon: float | None = None

    def module(self, role: str) -> str:
        """Return the name of the module that holds a role's weights."""
        if role.startswith("layer."):
            _, number, name = role.split(".")
            return f"{self.prefix}{self.layers}.{number}.{self.layer[name]}"
        return self.head[role] if role in self.head else f"{self.prefix}{_EMBEDDINGS[role]}"


_EMBEDDINGS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.segment": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.projection": "embeddings_project",
    "attention_bias": "encoder.relative_attention_bias",
}

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BertForSequenceClassification", "bert.", head={"pooler": "bert.pooler.dense", "classifier": "classifier"}
    ),
    "electra": Family("ElectraForSequenceClassification", "electra.", head_activation="gelu", embedding_size=128),
    "roberta": Family("RobertaForSequenceClassification", "roberta.", counts_padding=True),
    "xlm-roberta": Family("XLMRobertaForSequenceClassification", "roberta.", counts_padding=True),
    "camembert": Family("CamembertForSequenceClassification", "roberta.", counts_padding=True),
    "mpnet": Family(
        "MPNetForSequenceClassification",
        "mpnet.",
        layer=_MPNET_LAYER,
        segment_types=0,
        counts_padding=True,
        padding_id=1,
        attention_bias=True,
    ),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        "distilbert.",
        layer=_DISTILBERT_LAYER,
        head={"pooler": "pre_classifier", "classifier": "classifier"},
        head_activation="relu",
        layers="transformer.layer",
        segment_types=0,
        activation_key="activation",
        epsilon=1e-12,
    ),
}
"""By `model_type` of config.json."""


def is_own_class(model_type: str, name: str) -> bool:
    """Tell whether a class is that of a family here, so that a model that names it needs no code of its own."""
    family = FAMILIES.get(model_type)
    return family is not None and family.class_name == name


def activation_of(family: Family, config: Mapping[str, Any]) -> str:
    """Return the name of the activation of the layers."""
    return str(config.get(family.activation_key) or "gelu")


def why_not_built(config: Mapping[str, Any]) -> str | None:
    """Say why no graph is built here of a model with that config.json; None where one is.

    Args:
        config: Its content, of which nothing has been checked.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        return f"model_type {str(model_type)[:80]!r} is none of {', '.join(FAMILIES)}"
    names = config.get("architectures") or [family.class_name]
    if isinstance(names, list) and all(isinstance(name, str) for name in names) and family.class_name not in names:
        return f"its class {names[0]} is not {family.class_name}"
    activation = activation_of(family, config)
    if activation not in ACTIVATIONS:
        return f"{family.activation_key} {activation[:80]!r} is none of {', '.join(ACTIVATIONS)}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"position_embedding_type is {str(config['position_embedding_type'])[:80]!r}, not 'absolute'"
    buckets = config.get("relative_attention_num_buckets", BUCKETS)
    if family.attention_bias and buckets != BUCKETS:
        return f"relative_attention_num_buckets is {str(buckets)[:80]}, not {BUCKETS}"
    padding = config.get("pad_token_id", 1)
    if family.counts_padding and (not isinstance(padding, int) or padding < 0):
        return f"pad_token_id, from which its positions count, is {str(padding)[:80]}"
    if family.padding_id not in (None, padding):
        return f"pad_token_id is {str(padding)[:80]}, not {family.padding_id}"
    for name in ("is_decoder", "add_cross_attention", "pruned_heads", "quantization_config"):
        if config.get(name):
            return f"its config.json states {name}"
    return None
