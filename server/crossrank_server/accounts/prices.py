"""Compute the cost of documents by model and tier.

Money is counted in whole nano-dollars (1e-9 USD), so that a million small sums add up exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from crossrank.bundles.catalog import canonical_model_id, catalog_model
from crossrank.errors import SetupError
from crossrank.scheduling.tiers import BULK

NANO_PER_USD = 10**9
DEFAULT_USD_PER_1000 = 0.008

# A price of one millionth of a dollar per 1,000 documents is one nano-dollar a document.
_NANO_PER_DOCUMENT = NANO_PER_USD // 1000


@dataclass(frozen=True)
class Price:
    """Hold the price of one model in USD per 1,000 documents; without `bulk` the price list's factor gives it."""

    realtime: float
    bulk: float | None = None


class Prices:
    """Hold the price list of a server.

    The price of a model is the first of: the one named for it, the one set for all models, the catalogue's, 0.008 USD.

    Args:
        named: Prices by model id, as `parse_prices` reads them.
        usd_per_1000: Price of all models that are not named; None takes the catalogue's.
        bulk_factor: The price of tier `batch` as a share of the realtime price, where none is named.
    """

    def __init__(
        self,
        named: Mapping[str, Price] | None = None,
        *,
        usd_per_1000: float | None = None,
        bulk_factor: float = 0.5,
    ) -> None:
        self.named = dict(named or {})
        self._usd_per_1000 = usd_per_1000
        self._bulk_factor = bulk_factor

    def usd_per_1000(self, model_id: str, tier: str) -> float:
        """Return the price of 1,000 documents in USD, a multiple of 0.000001.

        Args:
            model_id: The model's canonical id.
            tier: `realtime` or `batch`.
        """
        return self._nano_usd_per_document(model_id, tier) * 1000 / NANO_PER_USD

    def basis(self, model_id: str) -> str:
        """Return in words where the price of a model comes from."""
        if model_id in self.named or self._usd_per_1000 is not None:
            return "set by this server's operator"
        known = catalog_model(model_id)
        return known.price_basis if known else "this project's default"

    def cost_nano_usd(self, model_id: str, tier: str, documents: int) -> int:
        """Return the cost of documents in nano-dollars."""
        return documents * self._nano_usd_per_document(model_id, tier)

    def _nano_usd_per_document(self, model_id: str, tier: str) -> int:
        price = self.named.get(model_id) or Price(self._unnamed(model_id))
        usd = price.realtime
        if tier == BULK:
            usd = price.realtime * self._bulk_factor if price.bulk is None else price.bulk
        return round(usd * _NANO_PER_DOCUMENT)

    def _unnamed(self, model_id: str) -> float:
        if self._usd_per_1000 is not None:
            return self._usd_per_1000
        known = catalog_model(model_id)
        return known.usd_per_1000_docs if known else DEFAULT_USD_PER_1000


def parse_prices(text: str) -> dict[str, Price]:
    """Read `MODEL=REALTIME` or `MODEL=REALTIME/BATCH`, several separated by commas.

    Raises:
        SetupError: An entry has another form, a price is no finite number of at least 0, or a model is named twice.
    """
    prices: dict[str, Price] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, figures = entry.rpartition("=")
        model_id = canonical_model_id(name)
        try:
            values = [float(figure) for figure in figures.split("/")]
        except ValueError:
            values = []
        if not model_id or len(values) not in (1, 2) or not all(math.isfinite(v) and v >= 0 for v in values):
            raise SetupError(
                f"--prices has {entry!r}: give MODEL=USD or MODEL=USD/BATCH_USD per 1,000 documents, "
                "such as my-model=0.02/0.01"
            )
        if model_id in prices:
            raise SetupError(f"--prices names {model_id} twice: give it one price")
        prices[model_id] = Price(*values)
    return prices


def usd_from_nano(nano_usd: int) -> float:
    """Convert nano-dollars to USD."""
    return nano_usd / NANO_PER_USD
