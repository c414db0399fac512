"""Shorten errors of other libraries to one line: the reason, without stack traces and file paths."""

from __future__ import annotations

import re

# Longer messages contain a whole graph or configuration.
_MOST_CHARACTERS = 800
# Prefixes of ONNX Runtime and OpenVINO: error codes, the model's file, the place in their own source.
_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"(?:Load model from|Exception during loading:) .*? failed:\s?"),
    re.compile(r"\S*/\S+\.(?:cc|cpp|h|hpp):\d+ (?:[\w:~<>,&* ]+\([^)]*\) |[\w:~<>]+ )?"),
    re.compile(r"^Exception from \S+:\s*$"),
    re.compile(r"^(?:Check '.*' failed at|Exception happened while) .*:\s*$"),
)
# Exception types that tell only that something failed.
_PLAIN = {"Exception", "RuntimeError", "Fail", "InvalidGraph", "InvalidProtobuf", "InvalidArgument", "RuntimeException"}


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one line, after the error's type where the type adds information.

    Args:
        error: Error of any library. Codes, source lines and file names of ONNX Runtime and OpenVINO are removed.
    """
    lines = []
    for line in str(error).splitlines():
        for noise in _NOISE:
            line = noise.sub("", line)
        if line.strip():
            lines.append(" ".join(line.split()))
    text = "; ".join(dict.fromkeys(lines)).replace(":; ", ": ")
    if len(text) > _MOST_CHARACTERS:
        text = f"{text[:_MOST_CHARACTERS]}... ({len(text) - _MOST_CHARACTERS} more characters)"
    kind = type(error).__name__
    if not text:
        return kind
    return text if kind in _PLAIN else f"{kind}: {text}"
