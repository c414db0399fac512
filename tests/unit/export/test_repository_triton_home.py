"""What is missing for a tritonserver on this machine is said in one sentence, with the command that installs it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crossrank.errors import SetupError
from crossrank_export.triton.home import TritonHome, find_home, home_path, prepare_python, prepare_server
from crossrank_export.triton.server import Ports, check_ports
from tests.triton_process import CROSSRANK, environment

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
INSTALL = "pip install --no-deps --target"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory laid out as the wheel is, with empty files."""
    root = tmp_path / "home" / "pytriton" / "tritonserver"
    for name in ("bin/tritonserver", f"python_backend_stubs/{PYTHON}/triton_python_backend_stub"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    (tmp_path / "home" / "nvidia_pytriton.libs").mkdir()
    (tmp_path / "home" / "numpy").mkdir()
    monkeypatch.setenv("CROSSRANK_TRITON_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_complete_home_is_found(home):
    found = find_home()
    assert found.server == home / "pytriton/tritonserver/bin/tritonserver"
    assert found.stub.is_file()


def test_without_the_wheel_the_message_has_the_command_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSRANK_TRITON_HOME", str(tmp_path / "nothing"))
    with pytest.raises(SetupError, match=rf"no tritonserver in {tmp_path}/nothing .*\n.*{INSTALL} {tmp_path}/nothing"):
        find_home()


def test_without_a_stub_for_this_python_the_message_names_those_there_are(home):
    stubs = home / "pytriton/tritonserver/python_backend_stubs"
    (stubs / PYTHON).rename(stubs / "3.8")
    with pytest.raises(SetupError, match=rf"no Python stub for Python {PYTHON}, only 3\.8"):
        find_home()


def test_without_old_numpy_the_home_is_refused_as_the_stub_would_read_wrong_numbers(home):
    (home / "numpy").rmdir()
    with pytest.raises(SetupError, match=r"no numpy below 2, without which the stub reads wrong numbers"):
        find_home()


def test_a_home_in_the_working_directory_is_the_default(tmp_path, monkeypatch):
    monkeypatch.delenv("CROSSRANK_TRITON_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".triton").mkdir()
    assert home_path() == tmp_path / ".triton"


def test_a_server_without_its_executable_bit_is_copied_and_made_executable(home, tmp_path):
    server = find_home().server
    server.chmod(0o644)
    copy = prepare_server(find_home(), tmp_path / "bin")
    assert copy == tmp_path / "bin" / "tritonserver"
    assert copy.stat().st_mode & 0o111
    server.chmod(0o755)
    assert prepare_server(find_home(), tmp_path / "bin") == server


def test_the_stubs_python_sees_the_homes_numpy_and_this_environments_packages(tmp_path):
    (tmp_path / "home" / "numpy").mkdir(parents=True)
    (tmp_path / "home" / "numpy" / "__init__.py").write_text("here = True\n")
    nothing = tmp_path / "nothing"
    prepare_python(TritonHome(tmp_path / "home", nothing, nothing, nothing, nothing), tmp_path / "python")
    code = "import numpy, tokenizers, crossrank_server; print(numpy.here)"
    ran = subprocess.run([tmp_path / "python" / "bin" / "python3", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "True\n"), ran.stderr


def test_a_taken_port_is_refused_by_its_flag(free_port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"--grpc-port {port} on 127\.0\.0\.1 cannot be used \(Address already"):
            check_ports(Ports("127.0.0.1", free_port(), port, free_port()))
    check_ports(Ports("127.0.0.1", free_port(), port, free_port()))


def test_a_port_given_twice_is_refused():
    with pytest.raises(SetupError, match="--http-port and --metrics-port are both 9001"):
        check_ports(Ports("127.0.0.1", 9001, 9002, 9001))


def test_the_command_prints_one_sentence_and_fails(tmp_path):
    ran = subprocess.run(
        [CROSSRANK, "triton"],
        capture_output=True,
        text=True,
        env=environment({"CROSSRANK_TRITON_HOME": str(tmp_path)}),
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: no tritonserver in {tmp_path}")
    assert "Traceback" not in ran.stderr
