"""`crossrank keys`: create, list and revoke the keys of a server, and add credit to them."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import click

from crossrank_server.accounts.base import SCOPES
from crossrank_server.commands.groups import DescribedGroup
from crossrank_server.commands.store_option import nano_usd, opened_store, print_rows, store_option

_DURATION = re.compile(r"(\d{1,5})\s*([hdwy])")
_UNIT_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
# Year 9999: later times have no date.
_END_OF_TIME = 253_370_764_800.0
_COLUMNS = (
    "id",
    "name",
    "state",
    "scopes",
    "requests_per_minute",
    "documents_per_minute",
    "granted_usd",
    "balance_usd",
    "created",
    "expires",
)


def expiry(value: str) -> float:
    """Return the Unix time of `90d`, `12h`, `4w`, `1y`, or of a date or time in UTC.

    Raises:
        click.BadParameter: It is none of these, or over already.
    """
    duration = _DURATION.fullmatch(value.strip())
    if duration:
        when = time.time() + int(duration[1]) * _UNIT_S[duration[2]]
    else:
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is no time: give 90d, 12h, 4w, 1y, or a date such as 2030-01-31"
            ) from None
        when = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if when <= time.time():
        raise click.BadParameter(f"{value!r} is over already")
    if when > _END_OF_TIME:
        raise click.BadParameter(f"{value!r} is too far away; leave it out for a key without an end")
    return when


def scopes(value: str) -> tuple[str, ...]:
    """Parse scopes separated by commas; return each once, in a fixed order.

    Raises:
        click.BadParameter: One is not known.
    """
    given = {part.strip() for part in value.split(",")} - {""}
    if not given or given - set(SCOPES):
        raise click.BadParameter(f"{value!r}: give some of {', '.join(SCOPES)}, separated by commas")
    return tuple(scope for scope in SCOPES if scope in given)


def free_credit(value: str) -> int:
    """Return the credit of a new key in nano-dollars.

    Raises:
        click.BadParameter: It is no sum, or negative.
    """
    if nano_usd(value) < 0:
        raise click.BadParameter(f"{value} is negative; give 0 or more")
    return nano_usd(value)


@click.group(cls=DescribedGroup)
def keys() -> None:
    """Create, list and revoke API keys, and add credit.

    \b
    Examples:
      export CROSSRANK_STORE=sqlite:///crossrank.db
      crossrank keys create --name search-team --expires 90d --requests-per-minute 600
      crossrank keys credit 3f9a0c71be52 10
      crossrank serve --host 0.0.0.0
    """  # noqa: D301 - click reads the backspace itself


@keys.command()
@store_option
@click.option("--name", required=True, help="Whose or what for; shown in lists and in /account.")
@click.option("--scopes", type=scopes, default=",".join(SCOPES), show_default=True, help="What it may do.")
@click.option("--expires", type=expiry, help="90d, 12h, 4w, 1y, or a date.  [default: never]")
@click.option(
    "--requests-per-minute",
    type=click.IntRange(min=1),
    envvar="CROSSRANK_KEY_REQUESTS_PER_MINUTE",
    show_envvar=True,
    help="Its limit.  [default: none]",
)
@click.option(
    "--documents-per-minute",
    type=click.IntRange(min=1),
    envvar="CROSSRANK_KEY_DOCUMENTS_PER_MINUTE",
    show_envvar=True,
    help="Its limit.  [default: none]",
)
@click.option(
    "--credit",
    type=free_credit,
    envvar="CROSSRANK_KEY_CREDIT",
    show_envvar=True,
    help="Prepaid USD; set the variable for a free credit on every new key.  [default: metered without an end]",
)
@click.option("--json", "as_json", is_flag=True, help="Print an object with id and key.")
def create(store_url: str | None, as_json: bool, **options: Any) -> None:
    """Create a key and print it; it cannot be read again later."""
    from crossrank_server.accounts.keys import NewKey, create_key

    new = NewKey(
        name=options["name"],
        scopes=options["scopes"],
        expires_at=options["expires"],
        requests_per_minute=options["requests_per_minute"],
        documents_per_minute=options["documents_per_minute"],
        credit_nano_usd=options["credit"],
    )
    with opened_store(store_url) as store:
        key = create_key(store, new)
    if as_json:
        import json

        click.echo(json.dumps({"id": key.split("-")[1], "key": key}))
    else:
        click.echo(key)
        click.echo("keep it now: it is stored hashed and cannot be shown again", err=True)


@keys.command(name="list")
@store_option
@click.option("--format", "how", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def list_(store_url: str | None, how: str) -> None:
    """List all keys, without their secrets."""
    from crossrank_server.accounts.keys import list_keys

    with opened_store(store_url) as store:
        found = list_keys(store)
    rows = [
        {
            **asdict(key),
            "scopes": ",".join(key.scopes),
            "created": _day(key.created_at),
            "expires": _day(key.expires_at),
        }
        for key in found
    ]
    print_rows([{name: row[name] for name in _COLUMNS} for row in rows], _COLUMNS, how)


@keys.command()
@store_option
@click.argument("key")
def revoke(store_url: str | None, key: str) -> None:
    """Revoke the KEY with this id for good. Running gateways refuse it within 5 seconds."""
    from crossrank_server.accounts.keys import revoke_key

    with opened_store(store_url) as store:
        revoke_key(store, key)
    click.echo("revoked", err=True)


@keys.command(context_settings={"ignore_unknown_options": True})
@store_option
@click.argument("key")
@click.argument("usd", type=nano_usd)
def credit(store_url: str | None, key: str, usd: int) -> None:
    """Add USD to the credit of KEY; a negative sum is taken from its balance.

    A key that had no credit becomes prepaid: from then on it is served until its credit is spent.
    """
    from crossrank_server.accounts.keys import add_credit
    from crossrank_server.accounts.prices import usd_from_nano

    with opened_store(store_url) as store:
        granted, balance = add_credit(store, key, usd)
    click.echo(f"granted {usd_from_nano(granted):.6f} USD in all, {usd_from_nano(balance):.6f} USD left")


def _day(when: float | None) -> str | None:
    return None if when is None else datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%d %H:%M")
