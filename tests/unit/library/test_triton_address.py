"""What --triton-url may hold."""

from __future__ import annotations

import pytest

from crossrank.engines.triton.address import Target, resolve, resolve_soon, targets_from_url
from crossrank.errors import SetupError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://host:8001", [Target("host", 8001)]),
        ("grpc://a:1,b:2, grpc://c:3/", [Target("a", 1), Target("b", 2), Target("c", 3)]),
        ("triton-0.triton.ns.svc", [Target("triton-0.triton.ns.svc", 8001)]),
        ("grpc://[::1]:9001,10.0.0.7", [Target("::1", 9001), Target("10.0.0.7", 8001)]),
    ],
)
def test_addresses_are_read(url: str, expected: list[Target]) -> None:
    assert targets_from_url(url) == expected


@pytest.mark.parametrize(
    "url",
    ["", "http://host:8000", "grpcs://host", "host:port", "host:0", "host:70000", "a:1,,b:2", "grpc://", "::1:8001"],
)
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(SetupError, match="grpc://host:8001,host2:8001"):
        targets_from_url(url)


def test_an_address_given_twice_is_refused() -> None:
    with pytest.raises(SetupError, match="a:8001 twice"):
        targets_from_url("a,grpc://a:8001")


def test_only_names_are_looked_up_again() -> None:
    assert [target.is_name for target in targets_from_url("localhost,127.0.0.1,[fe80::1%eth0]:1")] == [
        True,
        False,
        False,
    ]


async def test_a_name_stands_for_its_ipv4_addresses() -> None:
    (target,) = targets_from_url("localhost:8001")
    assert resolve(target) == await resolve_soon(target) == ["127.0.0.1:8001"]
    assert resolve(Target("::1", 5)) == ["[::1]:5"]
