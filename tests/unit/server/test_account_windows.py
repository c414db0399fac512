"""The sliding minute: what is left, when it is whole, and that the told waiting time is right and no longer than needed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossrank.errors import InvalidRequest, RateLimited
from crossrank_server.accounts.base import Account
from crossrank_server.accounts.windows import (
    WINDOW_S,
    Window,
    refuse_never_admissible,
    refuse_over_limit,
    write_headers,
)

ACCOUNT = Account("0a1b2c3d4e5f", "n", frozenset(), requests_per_minute=10, documents_per_minute=100)


def after(window: Window, seconds: float) -> Window:
    """The same window later, if nothing comes."""
    left = window.left_s - seconds
    current, previous = window.current, window.previous
    while left <= 0:
        left += WINDOW_S
        current, previous = 0, current
    return Window(window.kind, window.limit, current, previous, left)


windows = st.builds(
    Window,
    kind=st.just("documents"),
    limit=st.integers(1, 1000),
    current=st.integers(0, 1000),
    previous=st.integers(0, 1000),
    left_s=st.floats(0.01, WINDOW_S),
)


@given(windows, st.integers(1, 1000))
def test_after_the_told_wait_the_request_fits_and_a_second_sooner_it_does_not(window: Window, amount: int) -> None:
    assume(amount <= window.limit)
    wait_s = window.retry_after_s(amount)
    assert (wait_s == 0) == (window.remaining >= amount)
    # A thousandth of a second for the rounding of the arithmetic itself.
    assert after(window, wait_s + 0.001).remaining >= amount
    if wait_s > 1:
        assert after(window, wait_s - 1.001).remaining < amount


@given(windows)
def test_after_the_reset_the_limit_is_whole(window: Window) -> None:
    assert after(window, window.reset_s + 0.001).remaining == window.limit


def test_no_two_full_minutes_fit_into_a_second_where_two_minutes_meet() -> None:
    full = Window("requests", 60, current=60, previous=0, left_s=0.5)
    assert after(full, 1.0).remaining == 0


def test_the_headers_state_limit_rest_and_reset_of_each_kind() -> None:
    headers: dict[str, str] = {}
    write_headers([Window("requests", 10, 4, 0, 20.0), Window("documents", 100, 0, 50, 30.0)], headers)
    assert headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "6",
        "x-ratelimit-reset-requests": "80.0s",
        "x-ratelimit-limit-documents": "100",
        "x-ratelimit-remaining-documents": "75",
        "x-ratelimit-reset-documents": "30.0s",
    }


def test_the_limit_that_takes_longest_is_told() -> None:
    states = [Window("requests", 10, 10, 0, 1.0), Window("documents", 100, 99, 0, 40.0)]
    with pytest.raises(RateLimited) as refused:
        refuse_over_limit(ACCOUNT, states, documents=50)
    assert refused.value.retry_after_s == 40 + 60 - 30
    assert "100 documents a minute and has 1 left, the request has 50; try again in 70 s" in refused.value.message


def test_a_request_over_the_whole_limit_is_refused_for_good() -> None:
    refuse_never_admissible(ACCOUNT, 100)
    with pytest.raises(InvalidRequest, match=r"101 documents.*100 a minute.*split it"):
        refuse_never_admissible(ACCOUNT, 101)
