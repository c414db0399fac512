"""State facts of a model under the names that transformers' configurations have for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossrank.bundles.bundle import Manifest


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of an open model.

    Attributes:
        name_or_path: Id of the model.
        model_type: Family of the model: `bert`, `electra` ...
        num_hidden_layers: Layers of the encoder.
        hidden_size: Width of a token's hidden state.
        num_attention_heads: Attention heads of a layer.
        intermediate_size: Width of a layer's feed-forward part.
        vocab_size: Rows of the token embeddings.
        pad_token_id: Id of the padding token.
        num_labels: Scores of a pair, always 1.
    """

    name_or_path: str
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    pad_token_id: int
    num_labels: int = 1


def config_from_manifest(manifest: Manifest) -> ModelConfig:
    """Return the configuration that a bundle's manifest states."""
    sizes = manifest.architecture
    return ModelConfig(
        name_or_path=manifest.model_id,
        model_type=sizes.model_type,
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.ffn,
        vocab_size=sizes.vocab_size,
        pad_token_id=manifest.pad_token_id,
    )
