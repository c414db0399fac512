"""Groups of commands whose help shows every description whole."""

from __future__ import annotations

import click

# More than any first sentence has.
_WHOLE = 1000


class DescribedGroup(click.Group):
    """List each subcommand with the whole first sentence of its help, wrapped; click's own cuts it to one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(_WHOLE)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)
