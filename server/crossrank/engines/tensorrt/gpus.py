"""List the GPUs that a plan can be built for, and the releases of TensorRT proper that support each."""

from __future__ import annotations

from dataclasses import dataclass

from crossrank.errors import SetupError

REGISTRY = "nvcr.io/nvidia/tensorrt"


@dataclass(frozen=True)
class Container:
    """An image of NVIDIA's that holds TensorRT with its Python bindings.

    Attributes:
        tag: The image's tag; `tritonserver:<tag>` of the same month holds the same TensorRT.
        tensorrt: The version that its `tensorrt.__version__` begins with.
    """

    tag: str
    tensorrt: str

    @property
    def image(self) -> str:
        """Return the full name of the image."""
        return f"{REGISTRY}:{self.tag}"


# The last container for Volta, and the newest one whose TensorRT version was confirmed when this was written.
VOLTA = Container("24.09-py3", "10.4.0")
CURRENT = Container("26.08-py3", "11.2.1")


@dataclass(frozen=True)
class Gpu:
    """A GPU model.

    Attributes:
        name: Name for `--gpu`.
        label: Name by NVIDIA.
        sm: Compute capability times ten; a plan of TensorRT runs on this one only.
        oldest: First TensorRT release (major, minor) that a plan is built with.
        newest: Last TensorRT release that supports it, or None while it is supported.
        container: Container to build in where TensorRT is not installed.
    """

    name: str
    label: str
    sm: int
    oldest: tuple[int, int] = (10, 0)
    newest: tuple[int, int] | None = None
    container: Container = CURRENT


# Source: release notes of TensorRT 10.5.0 ("Volta support removed"), 10.8.0 (Blackwell added) and 10.13.2 (CUDA 13,
# which the systems of a GB10 have), https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes.html;
# compute capability 7.5 and later in the 26.08 containers, https://docs.nvidia.com/deeplearning/triton-inference-server/release-notes/.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("v100", "Tesla V100", 70, newest=(10, 4), container=VOLTA),
        Gpu("t4", "Tesla T4", 75),
        Gpu("a100", "A100", 80),
        Gpu("a30", "A30", 80),
        Gpu("a10", "A10", 86),
        Gpu("a40", "A40", 86),
        Gpu("l4", "L4", 89),
        Gpu("l40s", "L40S", 89),
        Gpu("h100", "H100", 90),
        Gpu("h200", "H200", 90),
        Gpu("b200", "B200", 100, oldest=(10, 8)),
        Gpu("rtx-20", "GeForce RTX 20 series", 75),
        Gpu("rtx-30", "GeForce RTX 30 series", 86),
        Gpu("rtx-40", "GeForce RTX 40 series", 89),
        Gpu("rtx-50", "GeForce RTX 50 series", 120, oldest=(10, 8)),
        Gpu("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, oldest=(10, 8)),
        Gpu("gb10", "GB10 (DGX Spark)", 121, oldest=(10, 13)),
    )
}


def release_of(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as `10.4.0`.

    Raises:
        SetupError: The version does not begin with two numbers.
    """
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise SetupError(f"TensorRT calls itself version {version!r}, which is not of the form major.minor.patch")
    return int(parts[0]), int(parts[1])


def sm_text(sm: int) -> str:
    """Return `7.0` for 70."""
    return f"{sm // 10}.{sm % 10}"


def check_release(gpu: Gpu, version: str) -> None:
    """Check that a TensorRT release supports the GPU.

    Raises:
        SetupError: The release is too old or too new for the GPU; the message names a container that fits.
    """
    release = release_of(version)
    remedy = f"build in {gpu.container.image}, which holds TensorRT {gpu.container.tensorrt}"
    if gpu.newest is not None and release > gpu.newest:
        newest = ".".join(map(str, gpu.newest))
        raise SetupError(
            f"TensorRT {version} does not support the {gpu.label} (SM {sm_text(gpu.sm)}), "
            f"the last release that does is {newest}: {remedy}"
        )
    if release < gpu.oldest:
        oldest = ".".join(map(str, gpu.oldest))
        raise SetupError(
            f"TensorRT {version} is too old for a plan on the {gpu.label}, it takes {oldest} or later: {remedy}"
        )
