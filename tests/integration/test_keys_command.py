"""`crossrank keys` and `crossrank usage` as an operator types them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from datetime import date

import pytest
from click.testing import CliRunner, Result

from crossrank.errors import SetupError, Unauthorized
from crossrank_server.accounts.ledger import Ledger, UsageBatch
from crossrank_server.accounts.store import Store
from crossrank_server.cli import cli
from tests.key_store import find_account

Run = Callable[..., Result]


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
def run(url: str) -> Run:
    def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, env={"CROSSRANK_STORE": url, "COLUMNS": "200", **(env or {})})

    return invoke


def made(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return str(result.stdout.strip())


def test_a_key_is_printed_alone_once_and_works(run: Run, url: str) -> None:
    result = run(
        "keys", "create", "--name", "team", "--scopes", "account,rerank", "--expires", "90d", "--credit", "5.00",
        "--requests-per-minute", "60", "--documents-per-minute", "6000",
    )  # fmt: skip
    key = made(result)
    assert "cannot be shown again" in result.stderr
    store = Store(url)
    account = find_account(store, key)
    store.close()
    assert (account.name, account.scopes, account.prepaid) == ("team", {"rerank", "account"}, True)
    assert (account.requests_per_minute, account.documents_per_minute) == (60, 6000)
    assert account.expires_at == pytest.approx(time.time() + 90 * 86_400, abs=60)
    (listed,) = json.loads(run("keys", "list", "--format", "json").stdout)
    assert (listed["id"], listed["state"], listed["balance_usd"]) == (account.key_id, "good", 5.0)
    table = run("keys", "list").stdout
    assert account.key_id in table
    assert key.split("-", 2)[2] not in table


def test_a_new_key_gets_the_defaults_of_the_environment(run: Run) -> None:
    env = {
        "CROSSRANK_KEY_CREDIT": "0.5",
        "CROSSRANK_KEY_REQUESTS_PER_MINUTE": "7",
        "CROSSRANK_KEY_DOCUMENTS_PER_MINUTE": "70",
    }
    made(run("keys", "create", "--name", "a", env=env))
    made(run("keys", "create", "--name", "b", "--credit", "0", env=env))
    made(run("keys", "create", "--name", "c"))
    listed = {key["name"]: key for key in json.loads(run("keys", "list", "--format", "json").stdout)}
    assert [listed[name]["granted_usd"] for name in "abc"] == [0.5, 0.0, None]
    assert [listed[name]["requests_per_minute"] for name in "abc"] == [7, 7, None]
    assert [listed[name]["documents_per_minute"] for name in "abc"] == [70, 70, None]
    assert listed["a"]["scopes"] == "rerank,models,account,metrics"


def test_credit_is_added_and_taken_back(run: Run) -> None:
    key = json.loads(made(run("keys", "create", "--name", "n", "--credit", "1", "--json")))
    assert key["key"].startswith(f"cr-{key['id']}-")
    assert made(run("keys", "credit", key["id"], "+10")) == "granted 11.000000 USD in all, 11.000000 USD left"
    assert made(run("keys", "credit", key["id"], "-0.5")) == "granted 10.500000 USD in all, 10.500000 USD left"
    refused = run("keys", "credit", key["id"], "-11")
    assert isinstance(refused.exception, SetupError)
    assert "10.500000 USD left, 11.000000 USD cannot be taken" in refused.exception.message


def test_a_revoked_key_is_listed_as_such(run: Run, url: str) -> None:
    key = made(run("keys", "create", "--name", "n"))
    made(run("keys", "revoke", key.split("-")[1]))
    (listed,) = csv.DictReader(io.StringIO(run("keys", "list", "--format", "csv").stdout))
    assert listed["state"] == "revoked"
    store = Store(url)
    with pytest.raises(Unauthorized):
        find_account(store, key)
    store.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create"], "--name"),
        (["create", "--name", "n", "--scopes", "rerank,write"], "give some of rerank, models, account, metrics"),
        (["create", "--name", "n", "--expires", "soon"], "give 90d, 12h, 4w, 1y, or a date"),
        (["create", "--name", "n", "--expires", "2001-01-01"], "is over already"),
        (["create", "--name", "n", "--expires", "99999y"], "too far away"),
        (["create", "--name", "n", "--credit", "-1"], "give 0 or more"),
        (["create", "--name", "n", "--credit", "nan"], "is no sum"),
        (["create", "--name", "n", "--credit", "1e9"], "at most a million"),
        (["create", "--name", "n", "--requests-per-minute", "0"], "x>=1"),
        (["credit", "0a1b2c3d4e5f", "ten"], "is no sum"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_give(run: Run, arguments: list[str], message: str) -> None:
    result = run("keys", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_without_a_store_the_option_is_named() -> None:
    for command in (["keys", "list"], ["usage"]):
        result = CliRunner().invoke(cli, command, env={"CROSSRANK_STORE": ""})
        assert isinstance(result.exception, SetupError)
        assert "--store or CROSSRANK_STORE" in result.exception.message


@pytest.fixture
def used(run: Run, url: str) -> dict[str, str]:
    """Two keys with usage on three days."""
    ids = {name: json.loads(made(run("keys", "create", "--name", name, "--json")))["id"] for name in ("one", "two")}
    store = Store(url)
    ledger = Ledger(store)
    ledger.apply(
        UsageBatch(
            ledger.gateway_id,
            1,
            usage={
                (ids["one"], date(2030, 1, 1), "m", "realtime"): [1, 10, 100, 80_000],
                (ids["one"], date(2030, 1, 1), "m", "batch"): [2, 20, 200, 80_000],
                (ids["one"], date(2030, 1, 3), "m", "realtime"): [1234, 1, 1, 8_000],
                (ids["two"], date(2030, 1, 2), "m", "realtime"): [1, 1, 1, 8_000],
            },
        )
    )
    store.close()
    return ids


def test_usage_is_summed_by_day_and_key(run: Run, used: dict[str, str]) -> None:
    rows = json.loads(run("usage", "--format", "json").stdout)
    assert [(row["day"], row["name"], row["requests"], row["documents"], row["tokens"]) for row in rows] == [
        ("2030-01-01", "one", 3, 30, 300),
        ("2030-01-02", "two", 1, 1, 1),
        ("2030-01-03", "one", 1234, 1, 1),
    ]
    assert [row["cost_usd"] for row in rows] == [0.00016, 0.000008, 0.000008]
    (batch, *_) = json.loads(run("usage", "--by-model", "--format", "json").stdout)
    assert (batch["tier"], batch["documents"], batch["cost_usd"]) == ("batch", 20, 0.00008)


def test_usage_is_filtered_by_key_and_day(run: Run, used: dict[str, str]) -> None:
    def days(*arguments: str) -> list[str]:
        return [
            row["day"][-1] for row in csv.DictReader(io.StringIO(made(run("usage", "--format", "csv", *arguments))))
        ]

    assert days("--key", used["one"]) == ["1", "3"]
    assert days("--since", "2030-01-02") == ["2", "3"]
    assert days("--until", "2030-01-02") == ["1", "2"]
    assert days("--since", "2030-01-02", "--until", "2030-01-02") == ["2"]
    assert days("--since", "2031-01-01") == []
    refused = run("usage", "--key", "000000000000")
    assert isinstance(refused.exception, SetupError)


def test_the_table_can_be_read(run: Run, used: dict[str, str]) -> None:
    table = run("usage").stdout
    assert "1,234" in table
    assert "0.000160" in table


def test_names_that_look_like_markup_are_printed_as_they_are(run: Run) -> None:
    made(run("keys", "create", "--name", "[red]x[/]", "--credit", "1"))
    assert "[red]x[/]" in run("keys", "list").stdout


def test_the_help_of_every_command_works(run: Run) -> None:
    for command in (["keys"], ["keys", "create"], ["keys", "list"], ["keys", "revoke"], ["keys", "credit"], ["usage"]):
        assert "Usage:" in run(*command, "--help").stdout
