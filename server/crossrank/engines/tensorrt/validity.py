"""Ask TensorRT for RTX whether a plan fits this machine, before it is loaded."""

from __future__ import annotations

from typing import Any

from crossrank.errors import SetupError

# Members of its EngineInvalidityDiagnostics, which are bits; first those that another plan has not.
_OF_THE_PLAN = {
    "MALFORMED_ENGINE": "it is damaged, or no plan of this release: build it again with crossrank engine",
    "VERSION_MISMATCH": "another release built it: build it again with crossrank engine",
    "UNSUPPORTED_CC": "it was built for other GPUs: build it for this one with crossrank engine",
}
_OF_THE_MACHINE = {
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it: update it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it: pip install --upgrade 'crossrank[tensorrt]'",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it: free some (nvidia-smi), or serve a smaller model",
    "CUDA_ERROR": "the NVIDIA driver does not answer: see nvidia-smi",
}


class PlanRefused(SetupError):
    """TensorRT does not load a plan: it is damaged, or of another release or GPU."""


def check_validity(trt: Any, runtime: Any, plan: bytes, what: str, logger: Any) -> None:
    """Read a plan's header.

    Args:
        trt: The module.
        runtime: Its Runtime.
        plan: The serialized plan.
        what: What cannot be done where the plan does not fit, for the message.
        logger: The runtime's logger.

    Raises:
        PlanRefused: Another plan may fit this machine.
        SetupError: No plan does.
    """
    validity, found = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if int(validity) != int(trt.EngineValidity.INVALID):
        return
    bits = trt.EngineInvalidityDiagnostics
    for kind, texts in ((SetupError, _OF_THE_MACHINE), (PlanRefused, _OF_THE_PLAN)):
        reasons = [text for name, text in texts.items() if int(getattr(bits, name)) & int(found)]
        if reasons:
            raise kind(f"{what}: {'; '.join(reasons)}")
    raise SetupError(f"{what}: {logger.reason()}")
