"""Seeded random checkpoints in the shape of real models, as Hugging Face directories.

    write_checkpoint(path, "TinyBERT-L2")                      true shape, a vocabulary of 30522
    write_checkpoint(path, "roberta", num_labels=2)            small relatives of other families
    write_checkpoint(path, "MiniLM-L12", vocab_size=200)       any field of the config can be changed
    write_family(path, "mpnet", num_labels=3)                  with the kind of tokenizer that the family has

Random weights say nothing about quality. They are drawn wider than a training run starts with, so that logits differ
from pair to pair and a lost token or segment shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.family_tokenizers import special_ids, write_tokenizer_of

SEED = 20240217


def _bert(layers: int, hidden: int, heads: int, ffn: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
    }


def _small(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**_bert(2, 32, 4, 64), "model_type": model_type, "vocab_size": 400, **changes}


NINE: dict[str, dict[str, Any]] = {
    "TinyBERT-L2-v2": _bert(2, 128, 2, 512),
    "MiniLM-L2-v2": _bert(2, 384, 12, 1536),
    "MiniLM-L4-v2": _bert(4, 384, 12, 1536),
    "MiniLM-L6-v2": _bert(6, 384, 12, 1536),
    "MiniLM-L12-v2": _bert(12, 384, 12, 1536),
    "TinyBERT-L2": _bert(2, 128, 2, 512),
    "TinyBERT-L4": _bert(4, 312, 12, 1200),
    "TinyBERT-L6": _bert(6, 768, 12, 3072),
    "electra-base": {**_bert(12, 768, 12, 3072), "model_type": "electra", "embedding_size": 768},
}
"""The models of the MS MARCO cross-encoder family in their true shapes."""

_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SMALL: dict[str, dict[str, Any]] = {
    "bert": _small("bert"),
    "electra": _small("electra", embedding_size=16),
    "roberta": _small("roberta", **_ROBERTA, max_position_embeddings=514),
    "xlm-roberta": _small("xlm-roberta", **_ROBERTA, max_position_embeddings=514),
    "mpnet": _small("mpnet", max_position_embeddings=514),
    "distilbert": {
        "model_type": "distilbert",
        "n_layers": 2,
        "dim": 32,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 400,
    },
    "deberta-v2": _small("deberta-v2", relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"]),
    # Every second layer sees eight tokens to each side.
    "modernbert": _small(
        "modernbert",
        num_hidden_layers=4,
        global_attn_every_n_layers=2,
        local_attention=16,
        **special_ids("modernbert"),  # its own defaults are beyond this vocabulary
    ),
}
"""One small model of each family; ELECTRA's embeddings are narrower than its layers, as in electra-small."""


def write_checkpoint(path: Path, name: str, *, seed: int = SEED, num_labels: int = 1, **changes: Any) -> Path:
    """Write config.json, model.safetensors and a fast tokenizer; return the directory.

    Args:
        path: Directory to write; made if absent.
        name: A key of NINE or SMALL.
        seed: Seed of the weights.
        num_labels: Labels of the classifier.
        changes: Fields of the config to change.
    """
    model = build_model(name, seed=seed, num_labels=num_labels, **changes)
    model.save_pretrained(path, safe_serialization=True)
    write_tokenizer(path, model.config)
    return path


def write_family(
    path: Path,
    name: str,
    *,
    seed: int = SEED,
    num_labels: int = 1,
    window: int = 128,
    segments: bool = True,
    **changes: Any,
) -> Path:
    """Do the same with a tokenizer of the family's own kind, whose vocabulary the model takes.

    Args:
        path: Directory to write; made if absent.
        name: A key of NINE or SMALL.
        seed: Seed of the weights.
        num_labels: Labels of the classifier.
        window: Tokens of a pair.
        segments: False where the tokenizer keeps them from the model, which then sees the first one everywhere.
        changes: Fields of the config to change.
    """
    family = {**NINE, **SMALL}[name]["model_type"]
    path.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer_of(family, path, window, segments=segments)
    # These count positions on from the padding id.
    positions = window + 2 if family in ("roberta", "xlm-roberta", "mpnet") else window
    config = {"vocab_size": vocab_size, "max_position_embeddings": positions, **special_ids(family), **changes}
    build_model(name, seed=seed, num_labels=num_labels, **config).save_pretrained(path, safe_serialization=True)
    return path


def build_model(name: str, *, seed: int = SEED, num_labels: int = 1, attention: str = "eager", **changes: Any) -> Any:
    """Return the model itself, in evaluation mode.

    Args:
        attention: `eager` or `sdpa`, where the family has it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shape = {"vocab_size": 30522, **{**NINE, **SMALL}[name], "num_labels": num_labels, **changes}
    config = AutoConfig.for_model(**shape)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        for key, weights in model.named_parameters():
            if "norm" in key.lower():
                weights.add_(0.1 * torch.randn_like(weights))
            else:
                # Products keep the size of what they multiply; embeddings are of size one.
                fan_in = 1 if "embeddings" in key or weights.ndim == 1 else weights.shape[1]
                weights.copy_(torch.randn_like(weights) * (0.3 if weights.ndim == 1 else fan_in**-0.5))
    return model.eval()


def write_tokenizer(path: Path, config: Any) -> None:
    """Write a fast tokenizer of the family with a vocabulary of generated words that fills the model's."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    is_roberta = "roberta" in config.model_type
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if is_roberta else []
    specials = specials or ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(ord("a") + i) for i in range(26)] + [str(i) for i in range(10)] + list(".,?!'-")
    words = specials + letters + [f"##{letter}" for letter in letters[:36]]
    words += [f"w{i}" for i in range(config.vocab_size - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}
    unknown = "<unk>" if is_roberta else "[UNK]"
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    start, end = ("<s>", "</s>") if is_roberta else ("[CLS]", "[SEP]")
    pair = f"{start} $A {end} {end} $B {end}" if is_roberta else f"{start} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", pair=pair, special_tokens=[(token, vocabulary[token]) for token in (start, end)]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(path / "tokenizer.json"))
    roles = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"] if is_roberta else []
    roles = roles or ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    settings: dict[str, Any] = dict(zip(roles, specials, strict=True))
    if is_roberta:
        settings |= {"cls_token": start, "sep_token": end}
    settings |= {"model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
