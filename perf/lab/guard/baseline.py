"""Unpack and build an earlier commit of this repository aside, and serve it beside the working tree."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crossrank.engines.cpu import available_cores
from crossrank.errors import SetupError
from crossrank_perf.base.server import StartedServer, free_ports, running_server_process

ROOT = Path(__file__).parents[3]
_SOURCES = ("server", "client", "export", "perf")


@dataclass(frozen=True)
class Tree:
    """A checkout: the working tree, or an unpacked commit.

    Attributes:
        name: Name in reports.
        directory: Root of the checkout.
    """

    name: str
    directory: Path

    def environment(self) -> dict[str, str]:
        """Return an environment in which this checkout's packages are imported, with this process's dependencies."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join(str(self.directory / each) for each in _SOURCES)}


def unpack_commit(revision: str, directory: Path, root: Path = ROOT) -> Tree:
    """Unpack a commit into a directory and compile its native engine there, as `make native` does.

    Args:
        revision: Revision in git's notation.
        directory: Empty directory.
        root: Root of the repository.

    Raises:
        SetupError: This is no git repository, it lacks the commit, or the commit cannot be built.
    """
    commit = _run(["git", "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"], root)
    archive = _run(["git", "archive", "--format=tar", revision], root)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(directory, filter="data")
    tree = Tree(f"commit {commit.decode().strip()}", directory)
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", f"--parallel={available_cores()}"]
    _run(build, directory)
    imported = _run(
        [sys.executable, "-c", "import crossrank_server; print(crossrank_server.__file__)"],
        directory,
        tree.environment(),
    )
    if not Path(imported.decode().strip()).is_relative_to(directory):
        raise SetupError(f"{tree.name} was unpacked, but Python imports {imported.decode().strip()} instead of it")
    return tree


@contextmanager
def serving_tree(tree: Tree, arguments: list[str]) -> Iterator[StartedServer]:
    """Run `crossrank serve` of a checkout on a free port of 127.0.0.1, and end it afterwards.

    Raises:
        SetupError: The server ended, or was not ready within three minutes; the message holds the last line that it
            printed.
    """
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "crossrank_server", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with running_server_process(
        [*command, *arguments], f"crossrank serve of {tree.name}", port, "/health/ready", tree.environment()
    ) as pid:
        yield StartedServer(f"http://127.0.0.1:{port}", pid, 0.0)


def _run(command: list[str], directory: Path, env: dict[str, str] | None = None) -> bytes:
    """Run a command and return its standard output.

    Raises:
        SetupError: It cannot be run, or fails; the message holds the last line that it printed.
    """
    try:
        return subprocess.run(command, cwd=directory, env=env, capture_output=True, check=True).stdout
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be run: {error}") from None
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise SetupError(f"{Path(command[0]).name} {command[1]} failed: {words}") from None
