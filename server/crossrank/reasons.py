"""What another library's error says, in one line: the reason first and whole, without its stack and its paths."""

from __future__ import annotations

import re

# Longer ones hold a graph or a configuration in full.
_MOST_CHARACTERS = 800
# What ONNX Runtime and OpenVINO put before the reason: codes, the file, where in their own source it was raised.
_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"(?:Load model from|Exception during loading:) .*? failed:\s?"),
    re.compile(r"\S*/\S+\.(?:cc|cpp|h|hpp):\d+ (?:[\w:~<>,&* ]+\([^)]*\) |[\w:~<>]+ )?"),
    re.compile(r"^Exception from \S+:\s*$"),
    re.compile(r"^(?:Check '.*' failed at|Exception happened while) .*:\s*$"),
)
# Types that say no more than that something failed.
_PLAIN = {"Exception", "RuntimeError", "Fail", "InvalidGraph", "InvalidProtobuf", "InvalidArgument", "RuntimeException"}


def reason_of(error: BaseException) -> str:
    """Return what an error says in one line, its type first where that tells more than the text.

    Args:
        error: Of any library; those of ONNX Runtime and OpenVINO lose their codes, source lines and file names.
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
