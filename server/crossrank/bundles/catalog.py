"""List the models this project is made for: shape, published figures, price, licence, pinned files.

The catalog needs neither network nor model files. `crossrank models` prints it; `hub_ref` reads the pins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

OWNER = "cross-encoder"
BUILTIN_ID = "crossrank-mini"

# The only published price: the estimate of a hosted service for TinyBERT-L2-v2, in USD per 1,000 documents.
_PUBLISHED_USD = 0.008
_PUBLISHED_USD_DOCS_PER_S = 9000


@dataclass(frozen=True)
class Pin:
    """A fixed commit of a hub repository, and the hashes expected of its files.

    Attributes:
        revision: Commit of the repository.
        sha256: Expected sha256 by file name; other files are checked against the hashes that the hub publishes.
    """

    revision: str
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class CatalogModel:
    """Entry of the catalog: a model's names, shape, published figures, price and licence.

    Attributes:
        model_id: Canonical id, by which requests name the model.
        aliases: Other spellings accepted wherever an id is.
        model_type: `bert` or `electra`, as in config.json.
        layers: Encoder layers.
        hidden: Width of the hidden states.
        heads: Attention heads of a layer.
        ffn: Width of the feed-forward layer.
        ndcg_at_10: NDCG@10 on TREC DL 2019 in percent, under `protocol`.
        mrr_at_10: MRR@10 on MS MARCO dev in percent; None if unpublished.
        docs_per_s_v100: Documents per second that its authors measured on a V100; None if unpublished.
        usd_per_1000_docs: Price of scoring 1,000 documents, in USD.
        price_basis: Origin of that price.
        price_published: Whether that price was published; otherwise it is an estimate.
        licence: SPDX identifier of the weights' licence; where there is none, a word for what their terms allow.
        terms: One sentence on what the licence forbids, for whoever serves the model; empty if nothing needs saying.
        protocol: Candidates that `ndcg_at_10` is measured on; figures of different protocols are not comparable.
        note: Further facts that users must know.
        pin: Revision and files loaded by default; None means the hub's `main`.
    """

    model_id: str
    aliases: tuple[str, ...]
    model_type: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    ndcg_at_10: float
    mrr_at_10: float | None
    docs_per_s_v100: int | None
    usd_per_1000_docs: float
    price_basis: str
    price_published: bool
    licence: str
    terms: str = ""
    protocol: str = "published by its authors: TREC DL 2019, a candidate list deeper than BM25 top-100"
    note: str = ""
    pin: Pin | None = field(default=None)

    @property
    def short_name(self) -> str:
        """Id without its owner; accepted wherever the id is."""
        return self.model_id.rpartition("/")[2]


def _hub_model(
    name: str,
    shape: tuple[int, int, int, int],
    published: tuple[float, float, int],
    *,
    licence: str,
    old_name: str | None = None,
    model_type: str = "bert",
    pin: Pin | None = None,
) -> CatalogModel:
    """Return the entry of `cross-encoder/NAME`.

    Args:
        name: Name without its owner.
        shape: Layers, hidden width, attention heads, width of the feed-forward layer.
        published: NDCG@10 and MRR@10 in percent, documents per second on a V100.
        licence: See `CatalogModel`.
        old_name: Earlier name, accepted as an alias.
        model_type: See `CatalogModel`.
        pin: See `CatalogModel`.
    """
    ndcg, mrr, docs_per_s = published
    aliases = [name] if old_name is None else [name, f"{OWNER}/{old_name}", old_name]
    is_priced = name == "ms-marco-TinyBERT-L2-v2"
    return CatalogModel(
        f"{OWNER}/{name}",
        tuple(aliases),
        model_type,
        *shape,
        ndcg_at_10=ndcg,
        mrr_at_10=mrr,
        docs_per_s_v100=docs_per_s,
        usd_per_1000_docs=round(_PUBLISHED_USD * _PUBLISHED_USD_DOCS_PER_S / docs_per_s, 4),
        price_basis="published estimate of a hosted service"
        if is_priced
        else "estimated: TinyBERT-L2-v2's price in proportion to the V100 speeds",
        price_published=is_priced,
        licence=licence,
        pin=pin,
    )


def _pin(revision: str, **sha256: str) -> Pin:
    names = {
        "config": "config.json",
        "onnx": "onnx/model.onnx",
        "safetensors": "model.safetensors",
        "tokenizer": "tokenizer.json",
    }
    return Pin(revision, MappingProxyType({names[key]: value for key, value in sha256.items()}))


BUILTIN = CatalogModel(
    BUILTIN_ID,
    ("builtin",),
    "bert",
    2,
    128,
    2,
    512,
    ndcg_at_10=60.93,
    mrr_at_10=None,
    docs_per_s_v100=None,
    usd_per_1000_docs=_PUBLISHED_USD,
    price_basis="estimated: TinyBERT-L2-v2's, whose shape it has",
    price_published=False,
    licence="non-commercial",
    terms="Its training text includes MS MARCO, whose terms allow research and other non-commercial use only.",
    protocol="measured by this project: TREC DL 2019, BM25 top-100 (BM25 order alone 50.58, best possible 89.22)",
    note="A demonstration model, trained by this project so that the server answers before anything is downloaded. "
    "It has the shape and speed of ms-marco-TinyBERT-L2-v2, not its quality; its scores are low even for good answers.",
)

# Source: https://huggingface.co/cross-encoder (model cards: NDCG@10, MRR@10, docs/s, licence).
# The pins come from third-party code, not from the hub itself; `ID@main` overrides them.
MODELS: tuple[CatalogModel, ...] = (
    BUILTIN,
    _hub_model(
        "ms-marco-TinyBERT-L2-v2",
        (2, 128, 2, 512),
        (69.84, 32.56, 9000),
        licence="Apache-2.0",
        old_name="ms-marco-TinyBERT-L-2-v2",
        pin=_pin(
            "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc",
            safetensors="a0e7364ddf91ff7028f1102e1b91ac7a72e3db4061241bd84efe45c72c9af03a",
            onnx="0eac39ee56a3edf98d0beee17fa1bb368a5a1d8c8671b5afd6dd71677f8d8496",
            config="2144195e107cd7ea61556478e7add12986ebfbc3085f924fc0b90c2410604879",
            tokenizer="d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        ),
    ),
    _hub_model(
        "ms-marco-MiniLM-L2-v2",
        (2, 384, 12, 1536),
        (71.01, 34.85, 4100),
        licence="Apache-2.0",
        old_name="ms-marco-MiniLM-L-2-v2",
        pin=_pin(
            "1b5cd67b15209f24824c50370e0397743aa9b787",
            onnx="97ae94c94faf17d97398a7af38e44ee0ef326eff99ece940423b187e885eae6a",
        ),
    ),
    _hub_model(
        "ms-marco-MiniLM-L4-v2",
        (4, 384, 12, 1536),
        (73.04, 37.70, 2500),
        licence="Apache-2.0",
        old_name="ms-marco-MiniLM-L-4-v2",
    ),
    _hub_model(
        "ms-marco-MiniLM-L6-v2",
        (6, 384, 12, 1536),
        (74.30, 39.01, 1800),
        licence="Apache-2.0",
        old_name="ms-marco-MiniLM-L-6-v2",
        pin=_pin(
            "233902d25c440f23af6f7d6e94d2946bac0bee0a",
            onnx="5d3e70fd0c9ff14b9b5169a51e957b7a9c74897afd0a35ce4bd318150c1d4d4a",
        ),
    ),
    _hub_model(
        "ms-marco-MiniLM-L12-v2",
        (12, 384, 12, 1536),
        (74.31, 39.02, 960),
        licence="Apache-2.0",
        old_name="ms-marco-MiniLM-L-12-v2",
    ),
    _hub_model(
        "ms-marco-TinyBERT-L2",
        (2, 128, 2, 512),
        (67.43, 30.15, 9000),
        licence="Apache-2.0",
        old_name="ms-marco-TinyBERT-L-2",
    ),
    _hub_model(
        "ms-marco-TinyBERT-L4",
        (4, 312, 12, 1200),
        (68.09, 34.50, 2900),
        licence="Apache-2.0",
        old_name="ms-marco-TinyBERT-L-4",
    ),
    _hub_model(
        "ms-marco-TinyBERT-L6",
        (6, 768, 12, 3072),
        (69.57, 36.13, 680),
        licence="Apache-2.0",
        old_name="ms-marco-TinyBERT-L-6",
    ),
    _hub_model(
        "ms-marco-electra-base",
        (12, 768, 12, 3072),
        (71.99, 36.41, 340),
        licence="Apache-2.0",
        model_type="electra",
    ),
)

_BY_ID = {model.model_id: model for model in MODELS}
_ID_BY_SPELLING = {
    spelling.casefold(): model.model_id for model in MODELS for spelling in (model.model_id, *model.aliases)
}


def canonical_model_id(text: str) -> str:
    """Return the canonical id for any accepted spelling; other text is only stripped of white space.

    Older spellings (`-L-2-v2`), ids without their owner and any letter case are accepted, as the hub does.
    """
    text = text.strip()
    return _ID_BY_SPELLING.get(text.casefold(), text)


def catalog_model(text: str) -> CatalogModel | None:
    """Return the catalog's entry for any accepted spelling of an id, or None."""
    return _BY_ID.get(canonical_model_id(text))
