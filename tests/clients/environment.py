"""Programs of other vendors' packages, each in a process of its own that runs in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.conftest import ROOT

_PROGRAMS = Path(__file__).parent / "programs"
# None of them may look beyond this machine: some load price lists or send telemetry unless told not to.
_OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGCHAIN_TRACING_V2": "false",
    "HF_HUB_OFFLINE": "1",
}


class Refused(Exception):
    """A client raised.

    Attributes:
        classes: Names of its exception's class and of those that this is derived from, modules included.
        message: Its text.
    """

    def __init__(self, classes: list[str], message: str) -> None:
        super().__init__(f"{classes[0]}: {message}")
        self.classes = classes
        self.message = message


def interpreter(environment: str) -> Path:
    """Return the Python of an environment; skip the test, saying how to prepare it, where there is none."""
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    if not (ROOT / f".venv-{environment}" / ".ready").exists():
        target = "clients" if environment.startswith("clients") else environment
        pytest.skip(f"no environment .venv-{environment}; `make {target}` prepares it")
    return python


class ClientProgram:
    """A program that worker.py runs.

    Args:
        environment: Where it runs: NAME of .venv-NAME.
        program: Its module's name.
        python_path: Where its modules are found besides beside worker.py.
    """

    def __init__(self, environment: str, program: str, python_path: Sequence[Path] = ()) -> None:
        kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        found = {"PYTHONPATH": os.pathsep.join(map(str, python_path))} if python_path else {}
        self._process = subprocess.Popen(
            [interpreter(environment), _PROGRAMS / "worker.py", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**kept, **_OFFLINE, **found},
        )

    def ask(self, call: str, **arguments: Any) -> Any:
        """Make a call and return what it returned.

        Raises:
            Refused: The client raised.
            RuntimeError: The program ended, as when its imports fail; its traceback is on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended with exit status {self._process.wait()}")
        answer = json.loads(line)
        if "raised" in answer:
            raise Refused(**answer["raised"])
        return answer["returned"]

    def __enter__(self) -> ClientProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _is_setting(name: str) -> bool:
    """Tell whether a variable could lead a client elsewhere: keys, base URLs, proxies, paths of our own modules."""
    name = name.upper()
    return name.startswith(("CROSSRANK_", "CO_", "COHERE_", "OPENAI_", "JINA", "NVIDIA_", "VOYAGE_", "PYTHON")) or (
        name.endswith("_PROXY")
    )
