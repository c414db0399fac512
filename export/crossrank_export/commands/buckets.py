"""Read `--buckets`, which `crossrank engine` and `crossrank repository` take."""

from __future__ import annotations

import click

from crossrank.engines.buckets import BUCKET_LENGTHS

DEFAULT = f"[default: {','.join(map(str, BUCKET_LENGTHS))} up to the model's window]"


def parse_lengths(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Return lengths written as 32,64,128; None where the option was not given.

    Raises:
        click.BadParameter: They are not numbers.
    """
    if value is None:
        return None
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of lengths such as 32,64,128", ctx, param) from None
