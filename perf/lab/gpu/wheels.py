"""Carry wheels in pieces to a machine that reaches no package index and takes only small files.

    python perf/lab/gpu/wheels.py pack DIR REQUIREMENT...    get wheels, cut them into pieces below 60 MB
    python perf/lab/gpu/wheels.py unpack DIR OUT             join the pieces, check every sha256, write the wheels

REQUIREMENT is what pip takes: names, `-r requirements/cuda.txt`, `--no-deps`. It runs where nothing is installed yet,
so that it imports the standard library only. DIR/wheels.json names each wheel with its sha256 and its pieces.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PIECE_BYTES = 59_000_000
INDEX = "wheels.json"
_BLOCK = 1 << 20


class WheelError(Exception):
    """Pieces are missing, damaged, or of no wheel."""


def pack(wheels: Sequence[Path], directory: Path, piece_bytes: int = PIECE_BYTES) -> None:
    """Cut wheels into pieces.

    Args:
        wheels: The files.
        directory: Where the pieces and the index go; it is created.
        piece_bytes: Most bytes of a piece.
    """
    directory.mkdir(parents=True, exist_ok=True)
    index = {}
    for wheel in sorted(wheels):
        digest = hashlib.sha256()
        names: list[str] = []
        with wheel.open("rb") as stream:
            while piece := stream.read(piece_bytes):
                names.append(f"{wheel.name}.{len(names):03}")
                (directory / names[-1]).write_bytes(piece)
                digest.update(piece)
        index[wheel.name] = {"sha256": digest.hexdigest(), "pieces": names}
    (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def unpack(directory: Path, out: Path) -> list[Path]:
    """Join the pieces, and return the wheels. A wheel has its name only once its sha256 is right.

    Raises:
        WheelError: The index or a piece is missing, a name leads elsewhere, or a sha256 is another one.
    """
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WheelError(f"{directory} holds no {INDEX}: make it with wheels.py pack") from None
    out.mkdir(parents=True, exist_ok=True)
    wheels = []
    for name, entry in index.items():
        for each in (name, *entry["pieces"]):
            if Path(each).name != each:
                raise WheelError(f"{INDEX} names {each!r}, which is no file of {directory}")
        wheels.append(_join([directory / piece for piece in entry["pieces"]], out / name, entry["sha256"]))
    return wheels


def _join(pieces: Sequence[Path], wheel: Path, sha256: str) -> Path:
    digest = hashlib.sha256()
    partial = wheel.with_name(f".{wheel.name}.partial")
    try:
        with partial.open("wb") as target:
            for piece in pieces:
                try:
                    with piece.open("rb") as source:
                        while block := source.read(_BLOCK):
                            digest.update(block)
                            target.write(block)
                except FileNotFoundError:
                    raise WheelError(f"{piece} is missing: carry it too") from None
        if digest.hexdigest() != sha256:
            raise WheelError(f"{wheel.name} has sha256 {digest.hexdigest()}, {INDEX} says {sha256}: carry it again")
        partial.replace(wheel)
    finally:
        partial.unlink(missing_ok=True)
    return wheel


def collect(requirements: Sequence[str], directory: Path) -> list[Path]:
    """Return the wheels that pip would install here; it makes those that the index has as source only.

    Raises:
        WheelError: pip cannot.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory)]
    done = subprocess.run([*command, *requirements], check=False)
    if done.returncode:
        raise WheelError(f"pip wheel ended with exit code {done.returncode}")
    return sorted(directory.glob("*.whl"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("directory", type=Path)
    given, rest = parser.parse_known_args(arguments)
    try:
        if given.action == "unpack":
            wheels = unpack(given.directory, Path(rest[0]) if rest else given.directory / "joined")
        else:
            with tempfile.TemporaryDirectory() as folder:
                wheels = collect(rest, Path(folder))
                shutil.rmtree(given.directory, ignore_errors=True)
                pack(wheels, given.directory)
    except WheelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("".join(f"{wheel.name}\n" for wheel in wheels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
