"""Define the `crossrank` command: a group whose subcommands are imported when first used."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version

import click

from crossrank.errors import CrossrankError
from crossrank_server.commands.groups import DescribedGroup

# Order of the help page: serve first, then what feeds it, then what measures it.
COMMANDS = {
    "serve": "crossrank_server.commands.serve:serve",
    "rerank": "crossrank_server.commands.rerank:rerank",
    "models": "crossrank_server.commands.models:models",
    "keys": "crossrank_server.commands.keys:keys",
    "usage": "crossrank_server.commands.usage:usage",
    "export": "crossrank_export.commands.export:export",
    "engine": "crossrank_export.commands.engine:engine",
    "repository": "crossrank_export.commands.repository:repository",
    "triton": "crossrank_export.commands.triton:triton",
    "tune": "crossrank_perf.commands.tune:tune",
    "eval": "crossrank_perf.commands.eval:evaluate",
    "bench": "crossrank_perf.commands.bench:bench",
    "perf-analyzer": "crossrank_perf.commands.perf_analyzer:perf_analyzer",
}


class LazyGroup(DescribedGroup):
    """Import a subcommand's module only when that subcommand is used.

    `crossrank serve` must not pay for what `crossrank export` imports.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None where there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module_name), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("crossrank"), prog_name="crossrank")
def cli() -> None:
    """Serve cross-encoder rerankers over HTTP.

    \b
    Try it now:
      crossrank serve                                      the built-in model on 127.0.0.1:8000
      crossrank rerank --query "who wrote faust" docs.txt  no server, straight from files or stdin
      crossrank models                                     what can be served, and what it costs
    """  # noqa: D301


def main() -> None:
    """Run the command line; errors meant for the user are one line on stderr and exit code 1."""
    try:
        cli(standalone_mode=True)
    except CrossrankError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        sys.exit(1)
