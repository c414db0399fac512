"""Install this project in fresh virtual environments, in each way, and measure their size and import time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crossrank.errors import SetupError

ROOT = Path(__file__).resolve().parents[3]
# Statement that a user of each installation imports first.
INSTALLATIONS = {
    "crossrank-client": "import crossrank_client",
    "crossrank": "from crossrank import CrossEncoder",
    "crossrank[openvino]": "from crossrank import CrossEncoder",
    "crossrank[server]": "import crossrank_server.http.app",
    "crossrank[server,openvino,grpc]": "import crossrank_server.http.app",
}
_IMPORTS = 15


@dataclass(frozen=True)
class Installation:
    """Figures of one way to install this project.

    Attributes:
        requirement: Requirement as given to pip.
        packages: Installed distributions, this project's own included.
        bytes: Size of their files, without bytecode that Python compiles at the first import.
        statement: The import that was timed.
        import_s: CPU seconds that the import adds to an empty Python process, median; all was imported before.
    """

    requirement: str
    packages: int
    bytes: int
    statement: str
    import_s: float


def measure_installations(say: Callable[[str], None]) -> Iterator[Installation]:
    """Build both wheels of the last commit, and measure each installation in a virtual environment of its own.

    Args:
        say: Called with the progress.

    Raises:
        SetupError: A step failed; the message has its output.
    """
    uv = str(Path(sys.executable).with_name("uv"))
    with tempfile.TemporaryDirectory(prefix="crossrank-install-") as name:
        folder = Path(name)
        tree = folder / "tree"
        tree.mkdir()
        _run("sh", "-c", f"git -C '{ROOT}' archive HEAD | tar -x -C '{tree}'")
        for project in (tree / "client", tree):
            _run(uv, "build", "--quiet", "--wheel", "--out-dir", str(folder / "wheels"), str(project))
        for i, (requirement, statement) in enumerate(INSTALLATIONS.items()):
            say(f"installing {requirement}")
            environment = folder / f"environment-{i}"
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(environment))
            python = str(environment / "bin" / "python")
            _run(uv, "pip", "install", "--quiet", "--python", python, *_wheels(folder / "wheels", requirement))
            (packages,) = environment.glob("lib/python*/site-packages")
            files = [path for path in packages.rglob("*") if path.is_file() and not path.is_symlink()]
            yield Installation(
                requirement,
                len(list(packages.glob("*.dist-info"))),
                sum(path.stat().st_size for path in files),
                statement,
                _seconds(python, statement) - _seconds(python, "pass"),
            )


def _wheels(folder: Path, requirement: str) -> list[str]:
    """Return a requirement as the files just built: the index may have other wheels of the same version."""
    (client,) = map(str, folder.glob("crossrank_client-*.whl"))
    if requirement == "crossrank-client":
        return [client]
    (own,) = map(str, folder.glob("crossrank-*.whl"))
    _, bracket, extras = requirement.partition("[")
    needs_client = "server" in extras or "grpc" in extras
    return [own + bracket + extras, *([client] if needs_client else [])]


def _seconds(python: str, statement: str) -> float:
    """Return the CPU time of a Python process that runs a statement, the least of several: others use this machine."""
    seconds = []
    for _ in range(_IMPORTS):
        before = os.times()
        _run(python, "-I", "-c", statement)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(seconds)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
