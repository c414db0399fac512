"""A virtual environment that holds a wheel and exactly what it declares, without a package index.

The distributions that the wheel requires, and those that they require, are linked from the environment that runs the
tests: what is not declared is not there.
"""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class FreshEnvironment:
    """A virtual environment of the running Python.

    Args:
        folder: Where to make it.
        wheels: What to install, with what they require.
        extras: Extras of the first wheel to install, too.
    """

    def __init__(self, folder: Path, *wheels: Path, extras: tuple[str, ...] = ()) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"
        self.installed: set[str] = set()
        metadata = []
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.packages)
            metadata.append(read_metadata(wheel))
            self.installed.add(canonicalize_name(metadata[-1]["Name"]))
        for i, found in enumerate(metadata):
            self._install_requirements(found, extras if i == 0 else ())

    def _install_requirements(self, metadata: Message, extras: tuple[str, ...]) -> None:
        for line in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            wanted = [
                extra
                for extra in ("", *extras)
                if not requirement.marker or requirement.marker.evaluate({"extra": extra})
            ]
            if not wanted:
                continue
            name = canonicalize_name(requirement.name)
            if name in self.installed and not requirement.extras:
                continue
            if name in self.installed:
                raise NotImplementedError(f"{line}: extras of something that is installed already")
            self.installed.add(name)
            found = distribution(name)
            self._link(found)
            self._install_requirements(Parser().parsestr(found.read_text("METADATA") or ""), tuple(requirement.extras))

    def _link(self, found: Distribution) -> None:
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            target = self.packages / file
            if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(source)

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run its Python with these words, isolated from the environment of the tests."""
        command = [str(self.folder / "bin" / "python"), "-I", *words]
        return subprocess.run(
            command, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
        )


def read_metadata(wheel: Path) -> Message:
    """Read the METADATA file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())
