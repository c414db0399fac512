"""Describe the families of encoders whose graph is built here, and how their checkpoints name each weight.

Weights have the roles of `crossrank.native.weights`, and these in addition:

    embeddings.projection   from the width of the embeddings to that of the layers (ELECTRA)
    attention_bias          [buckets, heads], added to attention scores by distance (MPNet)
    pooler                  the dense layer before the classifier, which families name differently

Source: models/*/modeling_*.py of https://github.com/huggingface/transformers, v4.57.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossrank.checkpoints.activations import ACTIVATIONS
from crossrank.checkpoints.position_bias import BUCKETS

# Names of a layer's modules in transformers' BERT, by role.
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
    """Description of one family of encoders: where its graph and the names of its weights differ from others.

    Attributes:
        class_name: Class of the family's cross-encoders in transformers.
        prefix: Prefix of the names of the encoder's weights.
        layer: Names of a layer's modules, by role.
        head: Names of the modules after the encoder, by role.
        head_activation: Activation between the two layers of the head.
        layers: Name of the encoder's list of layers; the number of a layer follows it.
        segment_types: Rows of the segment embeddings if config.json states none; 0 for a family without them.
        counts_padding: Whether positions count from the padding id on, over the tokens that are not padding.
        padding_id: Padding id that the family's code fixes; None if config.json states it.
        embedding_size: Width of the embeddings if config.json states none; None if it is always that of the layers.
        attention_bias: Whether attention scores get a bias by the distance of tokens.
        activation_key: Field of config.json that names the activation of the layers.
        epsilon: Epsilon of layer normalizations if the family fixes it; None if config.json states it.
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
"""Supported families by `model_type` of config.json."""


def is_own_class(model_type: str, name: str) -> bool:
    """Tell whether a class is the one of a supported family, so that a model that names it needs no code of its own."""
    family = FAMILIES.get(model_type)
    return family is not None and family.class_name == name


def activation_of(family: Family, config: Mapping[str, Any]) -> str:
    """Return the name of the activation of the layers."""
    return str(config.get(family.activation_key) or "gelu")


def why_not_built(config: Mapping[str, Any]) -> str | None:
    """Return why no graph can be built here for a model with this config.json; None if one can.

    Args:
        config: Content of config.json, not checked yet.
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
