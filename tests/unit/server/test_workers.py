"""How many processes serve, what each of them may take of the machine, and where there can only be one."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys

import pytest

from crossrank.engines.cpu import available_cores
from crossrank.errors import SetupError
from crossrank_server.commands.options import settings_from_options
from crossrank_server.process.workers import require_shared_ports
from crossrank_server.serving.worker_share import worker_count, worker_settings
from crossrank_server.settings import ServeSettings


@pytest.mark.parametrize("engine", ["auto", "native", "onnxruntime"])
def test_engines_of_this_process_have_all_cores_in_one_process(engine):
    assert worker_count(ServeSettings(workers="auto", engine=engine)) == 1


def test_in_front_of_triton_every_core_has_a_process():
    assert worker_count(ServeSettings(workers="auto", engine="triton")) == available_cores()


def test_a_gpu_is_fed_by_one_process_for_every_four_cores(monkeypatch):
    monkeypatch.setattr("crossrank.engines.candidates.cuda_installed", lambda: True)
    for cores, workers in ((2, 1), (4, 1), (16, 4)):
        monkeypatch.setattr("crossrank_server.serving.worker_share.available_cores", lambda cores=cores: cores)
        for engine in ("cuda", "auto"):
            settings = ServeSettings(workers="auto", engine=engine)
            assert worker_count(settings) == workers
            assert worker_settings(settings, workers).threads == 0, "its lanes are not the cores'"


def test_cores_that_are_not_ours_do_not_count():
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert worker_count(ServeSettings(workers="auto", engine="triton")) == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_one_process_unless_asked():
    # A container without a CPU limit has all cores of a large node, and memory for one process.
    assert worker_count(ServeSettings(engine="triton")) == 1


def test_a_number_is_that_number():
    assert worker_count(ServeSettings(workers="3")) == 3
    assert worker_count(ServeSettings(workers="3", engine="triton")) == 3


def test_workers_share_the_cores_unless_threads_are_given():
    assert worker_settings(ServeSettings(), 1).threads == 0
    assert worker_settings(ServeSettings(), available_cores()).threads == 1
    assert worker_settings(ServeSettings(), 1000).threads == 1
    assert worker_settings(ServeSettings(threads=5), 4).threads == 5


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1000"])
def test_anything_else_is_refused(value):
    with pytest.raises(SetupError, match=r"--workers \(CROSSRANK_WORKERS\) is"):
        settings_from_options(ServeSettings, {"workers": value})


# What Python for Windows does not have.
WINDOWS = """
import multiprocessing.context, os, signal, socket
del multiprocessing.context.ForkProcess, os.fork, os.setpgid, os.sched_getaffinity, socket.SO_REUSEPORT
del signal.pthread_sigmask, signal.SIGKILL
"""


def test_the_command_is_there_without_the_names_that_windows_lacks():
    code = WINDOWS + "from crossrank_server.commands.serve import serve; print(serve.name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("serve", "")


@pytest.mark.parametrize("missing", ["fork", "shared ports"])
def test_several_workers_need_fork_and_shared_ports_and_are_refused_with_the_remedy(monkeypatch, missing):
    require_shared_ports(2)
    if missing == "fork":
        monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    else:
        monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(SetupError, match=r"--workers is 2, but this operating system cannot .* use --workers 1"):
        require_shared_ports(2)
