"""Text files read line by line, with errors that name the file and the line."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crossrank.errors import SetupError

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Line:
    """One non-empty line of a file.

    Attributes:
        path: The file.
        number: Counted from 1.
        text: The line without its end.
    """

    path: Path
    number: int
    text: str

    def fail(self, problem: str) -> SetupError:
        """Return the error `FILE:NUMBER: problem`, to be raised by the caller."""
        return SetupError(f"{self.path}:{self.number}: {problem}")

    def shown(self) -> str:
        """Return the line for an error message: quoted, and cut to 80 characters."""
        return repr(self.text[:_SHOWN_CHARACTERS])


def read_lines(path: Path, what: str) -> Iterator[Line]:
    """Yield the non-empty lines of a UTF-8 text file, decompressed where its name ends in .gz.

    Args:
        path: The file.
        what: Kind of file for messages, such as `candidates file`.

    Raises:
        SetupError: The file is missing, unreadable, not UTF-8, or not gzip although its name ends in .gz.
    """
    number = 0
    try:
        # Bytes, not text: universal newlines would also split at a lone carriage return within a passage.
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                text = raw.decode("utf-8").rstrip("\r\n")
                if text.strip():
                    yield Line(path, number, text)
    except FileNotFoundError:
        raise SetupError(f"{what} {path} does not exist: check the path") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise SetupError(f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; convert the file") from None
    except (gzip.BadGzipFile, EOFError):
        raise SetupError(
            f"{what} {path} is not a complete gzip file: copy it again, or drop .gz from its name"
        ) from None
    except OSError as error:
        raise SetupError(f"{what} {path} cannot be read: {error.strerror or error}") from None
