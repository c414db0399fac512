"""Hash the declarations that Python and the native libraries share, so that a library of others is not called.

ctypes checks no signature: a library built from other headers would read and write the wrong memory. `setup.py`
computes the hash of the headers that it compiles and puts it into each library; `library.py` compares that with the
constant here.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

# Of the headers below. Whoever changes a declaration in one changes its ctypes twin too, then this; setup.py says the
# new value, and a build refuses any other.
INTERFACE = "200f00a631f32a06"
# All structures and functions that Python uses.
HEADERS = ("api.h", "padding.h", "wordpiece.h")

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def interface_of(directory: Path) -> str:
    """Return the hash of the declarations in a directory's headers: 16 hexadecimal digits.

    Comments and white space do not count.
    """
    code = [_COMMENT.sub(" ", (directory / name).read_text(encoding="utf-8")) for name in HEADERS]
    return hashlib.sha256(" ".join(" ".join(code).split()).encode()).hexdigest()[:16]
