"""Runs inside an environment of other vendors' clients: makes the calls that come in as lines of JSON.

    python worker.py PROGRAM        PROGRAM is a module beside this file

A line `{"call": .., "arguments": {..}}` is answered by `{"returned": ..}` or `{"raised": {"classes", "message"}}`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main() -> None:
    # Answers go to the stdout that this process was given; what the libraries print goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    program = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"returned": getattr(program, asked["call"])(**asked["arguments"])}
        except Exception as error:
            classes = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
            answer = {"raised": {"classes": classes, "message": str(error)}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
