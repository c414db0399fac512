"""The `crossrank` command: one group whose subcommands are imported when first used."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Any

import click

from crossrank.errors import CrossrankError, SetupError
from crossrank_server.commands.groups import DescribedGroup

# Order of the help page: serve first, then what feeds it, then what measures it.
COMMANDS = {
    "serve": "crossrank_server.commands.serve:serve",
    "rerank": "crossrank_server.commands.rerank:rerank",
    "models": "crossrank_server.commands.models:models",
    "engines": "crossrank_server.commands.engines:engines",
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
# What installs the packages that a command imports beyond those of the library.
EXTRAS = {
    **dict.fromkeys(("serve", "rerank", "models", "engines", "keys", "usage"), "server"),
    **dict.fromkeys(("export", "engine"), "export"),
    **dict.fromkeys(("repository", "triton"), "triton"),
    **dict.fromkeys(("tune", "eval", "bench", "perf-analyzer"), "perf"),
}


class LazyGroup(DescribedGroup):
    """Import a subcommand's module only when that subcommand is used.

    `crossrank serve` must not pay for what `crossrank export` imports. A command whose packages are not installed is
    listed all the same, and says which extra installs them.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None where there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute = COMMANDS[cmd_name].split(":")
        try:
            command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            return _command_that_refuses(cmd_name, _missing_package(cmd_name, error))
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a package that it imports while it runs may be missing, too.

        Raises:
            SetupError: It is; the message names the extra that installs it.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if ctx.invoked_subcommand is None:
                raise
            raise _missing_package(ctx.invoked_subcommand, error) from error


def _missing_package(cmd_name: str, error: ModuleNotFoundError) -> SetupError:
    """Return the error that names the extra of a command; raise `error` again where a module of our own is missing."""
    package = (error.name or "").partition(".")[0]
    if package.startswith("crossrank") and package != "crossrank_client":
        raise error
    return SetupError(f"crossrank {cmd_name} needs {package}: pip install 'crossrank[{EXTRAS[cmd_name]}]'")


def _command_that_refuses(cmd_name: str, error: SetupError) -> click.Command:
    """Return a command that takes any arguments, `--help` among them, and raises `error`."""

    @click.command(
        cmd_name,
        short_help=f"Not installed: pip install 'crossrank[{EXTRAS[cmd_name]}]'",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def refuse() -> None:
        raise error

    return refuse


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
