"""Runs a file of examples/ as `python FILE` would, in a process that has its framework loaded already."""

from __future__ import annotations

import contextlib
import io
import runpy


def run_example(path):
    """Return what the example printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()
