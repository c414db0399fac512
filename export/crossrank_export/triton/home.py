"""Find the tritonserver of the nvidia-pytriton wheel, and prepare a Python for its stub.

The wheel is installed into a directory of its own, as its requirements (numpy below 2 and other old pins) conflict with
the rest. Its Python stub reads arrays of numpy 2 wrongly, so the stub gets numpy 1.26: a small virtual environment puts
the wheel's directory before the project's.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import crossrank
from crossrank.errors import SetupError

HOME_VARIABLE = "CROSSRANK_TRITON_HOME"
DEFAULT_HOME = ".triton"
# With tritonserver 2.51.0 (Triton 24.10). numpy 1.26 has wheels for Python up to 3.12.
WHEEL = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"
_NEWEST_PYTHON = (3, 12)


@dataclass(frozen=True)
class TritonHome:
    """Paths of the installed wheel.

    Attributes:
        path: Directory that the wheel was installed into.
        server: The tritonserver binary.
        python_backend: Directory of the Python backend's library.
        libraries: Directories of shared libraries that these need.
        stub: Program that runs a Python model, for the version of the running Python.
    """

    path: Path
    server: Path
    python_backend: Path
    libraries: Path
    stub: Path


def install_command(path: Path) -> str:
    """Return the command that installs the files that `find_home` looks for."""
    return f"{Path(sys.executable).name} -m pip install --no-deps --target {path} {WHEEL} {NUMPY}"


def home_path(variable: str = HOME_VARIABLE, default: str = DEFAULT_HOME) -> Path:
    """Return where a tool of NVIDIA's is installed, tritonserver unless another is named.

    Args:
        variable: Environment variable that names the directory.
        default: Otherwise the directory of this name, here or in the checkout that this module belongs to.
    """
    if configured := os.environ.get(variable):
        return Path(configured).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[3]
    if not Path(default).is_dir() and (checkout / default).is_dir():
        return checkout / default
    return Path(default).resolve()


def find_home() -> TritonHome:
    """Return the installed tritonserver.

    Raises:
        SetupError: Server, stub for this Python or the stub's numpy is missing; the message says how to install them.
    """
    path = home_path()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"tritonserver's wheel is for Linux on x86_64, this is {platform.system()} on {platform.machine()}: "
            "use NVIDIA's container"
        )
    root = path / "pytriton" / "tritonserver"
    home = TritonHome(
        path=path,
        server=root / "bin" / "tritonserver",
        python_backend=root / "backends" / "python",
        libraries=path / "nvidia_pytriton.libs",
        stub=root / "python_backend_stubs" / python / "triton_python_backend_stub",
    )
    if not home.server.is_file() or not home.libraries.is_dir():
        raise SetupError(
            f"no tritonserver in {path} ({HOME_VARIABLE} names another place): run\n  {install_command(path)}"
        )
    if not home.stub.is_file():
        present = sorted(part.name for part in home.stub.parent.parent.glob("*.*"))
        raise SetupError(
            f"{path} has no Python stub for Python {python}, only {', '.join(present) or 'none at all'}: run crossrank "
            f"with one of those, or install again:\n  {install_command(path)}"
        )
    if sys.version_info[:2] > _NEWEST_PYTHON or not (path / "numpy").is_dir():
        newest = ".".join(map(str, _NEWEST_PYTHON))
        raise SetupError(
            f"{path} has no numpy below 2, without which the stub reads wrong numbers: with Python {newest} or older "
            f"(this is {python}) run\n  {install_command(path)}"
        )
    return home


def prepare_backends(home: TritonHome, directory: Path) -> None:
    """Make the backend directory for tritonserver: the Python backend with the stub for this Python."""
    python = directory / "python"
    shutil.rmtree(directory, ignore_errors=True)
    python.mkdir(parents=True)
    for file in home.python_backend.iterdir():
        (python / file.name).symlink_to(file)
    _copy_executable(home.stub, python)


def prepare_server(home: TritonHome, directory: Path) -> Path:
    """Return a tritonserver that can be executed: the wheel's own, or a copy in `directory`."""
    if os.access(home.server, os.X_OK):
        return home.server
    directory.mkdir(parents=True, exist_ok=True)
    return _copy_executable(home.server, directory)


def _copy_executable(file: Path, directory: Path) -> Path:
    """Copy a file and make it executable, as not every installer keeps that bit."""
    copy = directory / file.name
    shutil.copyfile(file, copy)
    copy.chmod(0o755)
    return copy


def prepare_python(home: TritonHome, directory: Path) -> None:
    """Make the virtual environment of the stub: numpy of the Triton home first, then the running environment.

    The stub embeds Python and finds its environment by the first `python3` on PATH.
    """
    interpreter = Path(sys.executable).resolve()
    packages = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "bin").mkdir(parents=True)
    packages.mkdir(parents=True)
    (directory / "bin" / "python3").symlink_to(interpreter)
    version = ".".join(map(str, sys.version_info[:3]))
    (directory / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    own = Path(crossrank.__file__).resolve().parent.parent
    sites = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    lines = [str(home.path), *(f"import site; site.addsitedir({site!r})" for site in sites), str(own)]
    (packages / "crossrank.pth").write_text("\n".join(lines) + "\n")


def library_path(home: TritonHome) -> str:
    """Return LD_LIBRARY_PATH for tritonserver and the stub, which needs the shared library of this Python.

    Raises:
        SetupError: This Python has none.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    paths = [str(home.libraries)]
    directory = Path(str(sysconfig.get_config_var("LIBDIR")))
    if (directory / name).is_file():
        paths.append(str(directory))
    else:
        try:
            ctypes.CDLL(name)
        except OSError:
            raise SetupError(
                f"Triton's Python stub needs {name}, which is neither in {directory} nor on this system: use a Python "
                "built with --enable-shared (Debian: libpython3, pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
            ) from None
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        paths.append(inherited)
    return ":".join(paths)
