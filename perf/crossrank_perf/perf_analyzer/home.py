"""Find NVIDIA's perf_analyzer, the binary of a tritonclient wheel, and the shared libraries that it needs."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crossrank.errors import SetupError
from crossrank_export.triton.home import home_path

HOME_VARIABLE = "CROSSRANK_PERF_ANALYZER_HOME"
DEFAULT_HOME = ".perf-analyzer"
SETUP = "make perf-analyzer-setup"
# lib holds libb64, which no wheel of that name carries; the other is the wheel nvidia-cuda-runtime-cu12.
_LIBRARIES = ("lib", "nvidia/cuda_runtime/lib")
_VERSION_LIMIT_S = 60.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """An installed perf_analyzer whose libraries are all there.

    Attributes:
        binary: The program.
        libraries: Directories for LD_LIBRARY_PATH.
        version: As it reports it.
    """

    binary: Path
    libraries: tuple[Path, ...]
    version: str

    def environment(self) -> dict[str, str]:
        """Return the environment to run it in."""
        return _environment(self.libraries)


def find_perf_analyzer() -> PerfAnalyzer:
    """Return the installed perf_analyzer after asking it for its version, which needs all its libraries.

    Raises:
        SetupError: It or a library is missing; the message names the make target that installs both.
    """
    home = home_path(HOME_VARIABLE, DEFAULT_HOME)
    binary = home / "bin" / "perf_analyzer"
    if not binary.is_file():
        raise SetupError(f"no perf_analyzer in {home}: run {SETUP}, or set {HOME_VARIABLE} to where it lies")
    libraries = tuple(home / name for name in _LIBRARIES)
    try:
        answer = subprocess.run(
            [str(binary), "--version"],
            env=_environment(libraries),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VERSION_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{binary} cannot be run ({error}): run {SETUP} again on Linux x86_64") from None
    if missing := re.search(r"(lib\S+): cannot open shared object file", answer.stderr):
        raise SetupError(
            f"perf_analyzer needs {missing[1]}, which is neither on this system nor in {home}: run {SETUP} again"
        )
    version = re.search(r"Version (\S+)", answer.stdout + answer.stderr)
    if version is None:  # its exit code is not 0 even so
        words = (answer.stderr or answer.stdout).strip() or f"exit code {answer.returncode}"
        raise SetupError(f"{binary} does not start ({words}): run {SETUP} again")
    return PerfAnalyzer(binary, libraries, version[1])


def _environment(libraries: tuple[Path, ...]) -> dict[str, str]:
    paths = [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(paths)}
