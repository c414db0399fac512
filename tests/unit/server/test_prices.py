"""What documents cost: which price counts, and that sums are exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import SetupError
from crossrank_server.accounts.prices import Price, Prices, parse_prices

MINILM = "cross-encoder/ms-marco-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("prices", "model", "realtime", "batch"),
    [
        (Prices(), "crossrank-mini", 0.008, 0.004),
        (Prices(), MINILM, 0.04, 0.02),  # the catalogue's
        (Prices(), "somebody/else", 0.008, 0.004),  # not in the catalogue
        (Prices(usd_per_1000=0.1), MINILM, 0.1, 0.05),
        (Prices(usd_per_1000=0.1, bulk_factor=0.25), "somebody/else", 0.1, 0.025),
        (Prices(parse_prices(f"{MINILM}=0.2"), usd_per_1000=0.1), MINILM, 0.2, 0.1),
        (Prices(parse_prices("ms-marco-MiniLM-L-6-v2=0.2/0.01,x=0"), usd_per_1000=0.1), MINILM, 0.2, 0.01),
        (Prices(parse_prices("x=0")), "x", 0.0, 0.0),
    ],
)
def test_a_named_price_wins_over_the_one_for_all_and_that_over_the_catalogue(
    prices: Prices, model: str, realtime: float, batch: float
) -> None:
    assert prices.usd_per_1000(model, "realtime") == pytest.approx(realtime, abs=1e-12)
    assert prices.usd_per_1000(model, "batch") == pytest.approx(batch, abs=1e-12)


def test_several_prices_are_read_in_any_spelling_of_the_model() -> None:
    read = parse_prices(" builtin = 1 , a/b=2/1.5,, ")
    assert read == {"crossrank-mini": Price(1.0), "a/b": Price(2.0, 1.5)}


@pytest.mark.parametrize("text", ["x", "=1", "x=", "x=a", "x=1/2/3", "x=-1", "x=nan", "x=inf", "x=1,x=2", "x=1/-1"])
def test_a_price_that_is_none_is_refused_with_the_form_to_give(text: str) -> None:
    with pytest.raises(SetupError, match="--prices"):
        parse_prices(text)


@given(st.lists(st.integers(0, 10_000), max_size=50), st.floats(0, 10), st.sampled_from(["realtime", "batch"]))
def test_many_requests_cost_exactly_what_one_with_all_their_documents_costs(
    sizes: list[int], usd: float, tier: str
) -> None:
    prices = Prices(usd_per_1000=usd)
    parts = sum(prices.cost_nano_usd("m", tier, size) for size in sizes)
    assert parts == prices.cost_nano_usd("m", tier, sum(sizes))


def test_the_default_price_of_a_thousand_documents_is_eight_million_nano_dollars() -> None:
    assert Prices().cost_nano_usd("crossrank-mini", "realtime", 1000) == 8_000_000
    assert Prices().cost_nano_usd("crossrank-mini", "batch", 1000) == 4_000_000


@pytest.mark.parametrize(
    ("prices", "model", "basis"),
    [
        (Prices(), MINILM, "estimated: TinyBERT-L2-v2's price in proportion to the V100 speeds"),
        (Prices(), "somebody/else", "this project's default"),
        (Prices(usd_per_1000=0.1), MINILM, "set by this server's operator"),
        (Prices(parse_prices(f"{MINILM}=0.2")), MINILM, "set by this server's operator"),
        (Prices(parse_prices("x=0.2")), "somebody/else", "this project's default"),
    ],
)
def test_the_basis_of_a_price_says_who_set_it(prices: Prices, model: str, basis: str) -> None:
    assert prices.basis(model) == basis
