"""`crossrank usage`: what was scored and what it cost, by day and key."""

from __future__ import annotations

from datetime import datetime

import click

from crossrank_server.commands.store_option import opened_store, print_rows, store_option


@click.command()
@store_option
@click.option("--key", help="Only the key with this id.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Only from this day on (UTC).")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Only up to this day (UTC), itself included.")
@click.option("--by-model", is_flag=True, help="A row for each model and tier as well.")
@click.option("--format", "how", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def usage(
    store_url: str | None, key: str | None, since: datetime | None, until: datetime | None, by_model: bool, how: str
) -> None:
    """Print requests, documents, tokens and cost of each key and day.

    \b
    Examples:
      crossrank usage --since 2030-01-01 --until 2030-01-31 --format csv > january.csv
      crossrank usage --key 3f9a0c71be52 --by-model
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_server.accounts.keys import existing_key_id
    from crossrank_server.accounts.usage import UsageFilter, usage_by_day

    with opened_store(store_url) as store:
        which = UsageFilter(
            key_id=None if key is None else existing_key_id(store, key),
            since=since.date() if since else None,
            until=until.date() if until else None,
        )
        rows = usage_by_day(store, which, by_model=by_model)
    columns = ["day", "key_id", "name", *(["model", "tier"] if by_model else [])]
    print_rows(rows, [*columns, "requests", "documents", "tokens", "cost_usd"], how)
