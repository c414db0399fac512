"""Check that this machine can build a plan, and say what else can."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crossrank.engines.tensorrt.device import Device, device_fault
from crossrank.engines.tensorrt.gpus import Gpu, sm_text
from crossrank.engines.tensorrt.runtimes import RTX, TENSORRT
from crossrank.errors import SetupError

# With it a plan is run: the extra `tensorrt` has it, beside a TensorRT that NVIDIA's images have already.
CUDA_BINDINGS = "'cuda-bindings>=12.9,<13'"


def check_device(gpu: Gpu, device: Device) -> None:
    """Check that kernels are tuned on the GPU that they are for.

    Raises:
        SetupError: The GPU asked for is not the one present.
    """
    if device.sm != gpu.sm:
        raise SetupError(
            f"--gpu {gpu.name} asks for a {gpu.label} (SM {sm_text(gpu.sm)}), this machine has a {device.name} "
            f"(SM {sm_text(device.sm)}): plans run only on the SM they were tuned on, so build on a {gpu.label} "
            "or name the GPU that is here"
        )


def require_wheel(trt: Any | None) -> Any:
    """Return the module of TensorRT for RTX.

    Raises:
        SetupError: It is not installed.
    """
    if trt is None:
        raise SetupError(f"{RTX.label} is not installed: pip install 'crossrank[tensorrt]' (Linux on x86-64)")
    return trt


def require_machine(trt: Any | None, device: Device | None, gpu: Gpu, why: str, container_command: str) -> Device:
    """Return the GPU of this machine, after checking that the machine can build for `gpu` with TensorRT proper.

    Raises:
        SetupError: TensorRT or a GPU is absent; the message holds the command that builds in a container.
    """
    missing = []
    if trt is None:
        missing.append("TensorRT is not installed")
    if device is None:
        missing.append(device_fault().partition(": ")[0])
    if missing or device is None:
        releases = "10.4, the last that supports it" if gpu.newest else f"{gpu.oldest[0]}.{gpu.oldest[1]} or later"
        raise SetupError(
            f"cannot build a plan for the {gpu.label} on this machine: it takes TensorRT {releases} ({why}), and here "
            f"{' and '.join(missing)}. Where docker and the {gpu.label} are, run:\n\n  {container_command}\n\n"
            "or add --dry-run to see here what would be built."
        )
    return device


def container_command(bundle_path: Path, gpu: Gpu, arguments: Sequence[str], timing_cache: Path | None) -> str:
    """Return the docker command that builds the same plan in NVIDIA's container.

    Args:
        bundle_path: Bundle on the host, which is mounted.
        gpu: GPU that decides the image.
        arguments: Further options of `crossrank engine`, as the user gave them.
        timing_cache: The user's `--timing-cache`, whose directory is mounted too.
    """
    mounts = ["-v", f"{bundle_path.resolve()}:/bundle"]
    arguments = list(arguments)
    if timing_cache is not None:
        mounts += ["-v", f"{timing_cache.resolve().parent}:/timings"]
        arguments += ["--timing-cache", f"/timings/{timing_cache.name}"]
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        mounts += ["-v", f"{checkout}:/crossrank"]
        package = "/crossrank"
    else:
        package = f"crossrank=={version('crossrank')}"
    inner = f"pip install -q {package} {CUDA_BINDINGS} && " + shlex.join(
        ["crossrank", "engine", "/bundle", "--gpu", gpu.name, "--runtime", TENSORRT.name, *arguments]
    )
    return shlex.join(["docker", "run", "--rm", "--gpus", "all", *mounts, gpu.container.image, "bash", "-c", inner])
