"""Check the arguments of `CrossEncoder`, and open its model from them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from crossrank.engines.names import DEVICES, EMBEDDED_ENGINES, Device, EngineName, PrecisionName

if TYPE_CHECKING:
    from crossrank.cross_encoder.loaded import LoadedModel

# Engine for each back end of sentence-transformers.
_BACKENDS: dict[str, EngineName] = {"torch": "auto", "onnx": "onnxruntime", "openvino": "openvino"}
_PLACES: dict[str | None, Device | None] = {None: None, "cpu": "cpu", "cuda": "gpu", "cuda:0": "gpu"}
Name = TypeVar("Name", bound=str)
# Options of transformers that change no score.
_WITHOUT_EFFECT = {"attn_implementation", "low_cpu_mem_usage", "use_safetensors"}
_REMEDIES = {
    "torch_dtype": "use precision='bf16' or 'fp32'",
    "dtype": "use precision='bf16' or 'fp32'",
    "model_max_length": "use max_length",
    "max_length": "use max_length",
    "num_labels": "use label to choose which of several labels is the score",
    "provider": "use engine",
    "file_name": "give the path of the ONNX file as model_name_or_path",
    "device_map": "use device or engine",
}


@dataclass(frozen=True)
class Opening:
    """Open a model from arguments that can be pickled, in this process or in another.

    Attributes:
        model: `builtin`, a directory, an ONNX file or a hub id.
        cache_folder: Directory of converted models; None is the default cache.
        revision: Commit, branch or tag on the hub.
        offline: Whether to use no network.
        token: Access token for private repositories; None is huggingface_hub's own.
        label: Index of the logit that is the score, where a model gives several.
        engine: Name of an engine that runs in this process, or `auto`.
        precision: Precision of the computation, or `auto`.
        threads: Number of concurrent inferences; None is one per core.
        device: Device to compute on; None is the fastest.
    """

    model: str
    cache_folder: str | None = None
    revision: str | None = None
    offline: bool = False
    token: str | bool | None = field(default=None, repr=False)
    label: int | None = None
    engine: EngineName = "auto"
    precision: PrecisionName = "auto"
    threads: int | None = None
    device: Device | None = None

    def open(self) -> LoadedModel:
        """Return the model, loaded into an engine.

        Raises:
            ModelSourceError: The model cannot be found, fetched or trusted.
            BundleError: The model's files do not fit each other, or cannot be converted.
            SetupError: No engine of this machine can serve the model as requested.
        """
        # Imported on use, so that `import crossrank` loads no tokenizer, no engine and no pydantic.
        from crossrank.cross_encoder.loaded import LoadedModel
        from crossrank.engines.tuning import load_engine
        from crossrank.resolve import resolve_model

        cache_dir = None if self.cache_folder is None else Path(self.cache_folder)
        bundle = resolve_model(
            self.model,
            cache_dir=cache_dir,
            offline=self.offline,
            label=self.label,
            revision=self.revision,
            token=self.token,
        )
        engine = load_engine(bundle, self.engine, self.precision, self.threads, cache_dir, self.device)
        return LoadedModel(bundle, engine)


def engine_and_device(engine: str, device: Any, backend: str) -> tuple[EngineName, Device | None]:
    """Return the engine and the device that three arguments select together.

    Args:
        engine: Name of an engine; takes precedence over `backend`.
        device: None, `cpu`, `cuda` or `cuda:0`, as text or torch.device.
        backend: Name of a back end of sentence-transformers.

    Raises:
        ValueError: One is unknown or not supported, or they contradict each other.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"Unsupported backend {backend!r}: use one of {', '.join(_BACKENDS)}, or choose with engine")
    place = None if device is None else str(device)
    if place not in _PLACES:
        raise ValueError(f"device {place!r} is not supported: use 'cpu' or 'cuda', which is the first GPU")
    known = checked_name("engine", engine, EMBEDDED_ENGINES)
    chosen = known if known != "auto" else _BACKENDS[backend]
    wanted = _PLACES[place]
    if wanted and DEVICES.get(chosen, wanted) != wanted:
        raise ValueError(f"device {place!r} and engine {chosen!r} contradict each other: leave one of them out")
    return ("cuda" if wanted == "gpu" and chosen == "auto" else chosen), wanted


def checked_name(argument: str, name: str, known: tuple[Name, ...]) -> Name:
    """Return `name` if it is one of the known names.

    Raises:
        ValueError: It is not.
    """
    for each in known:
        if each == name:
            return each
    raise ValueError(f"{argument} {name!r} is not known: use one of {', '.join(known)}")


def refuse_options(
    *,
    threads: int | None,
    modules: Any,
    trust_remote_code: bool,
    num_labels: int | None,
    keep_in_fp32_modules: Any,
    options: Mapping[str, Mapping[str, Any] | None],
) -> None:
    """Refuse arguments of sentence-transformers that this library does not support; each error names the alternative.

    Args:
        threads: Number of concurrent inferences.
        modules: Torch modules of a model.
        trust_remote_code: Whether code of the model's author may run.
        num_labels: Number of labels of the classifier.
        keep_in_fp32_modules: Modules that keep fp32 where the others have another precision.
        options: Options that sentence-transformers passes on to transformers, by name of the argument.

    Raises:
        ValueError: An argument is not supported, or `threads` is below 1.
    """
    if threads is not None and operator.index(threads) < 1:
        raise ValueError(f"threads is {threads}: give 1 or more, or None for one for each core")
    if modules is not None:
        raise ValueError("modules is not supported: save the model with sentence-transformers and give its directory")
    if trust_remote_code:
        raise ValueError("trust_remote_code is not supported: code of a model's author is never run here")
    if num_labels not in (None, 1):
        raise ValueError(
            f"num_labels {num_labels} is not supported, as a score is one number: choose one of the labels with label"
        )
    if keep_in_fp32_modules:
        raise ValueError("keep_in_fp32_modules is not supported: use precision='fp32' for all layers")
    for argument, given in options.items():
        for name in given or ():
            if name not in _WITHOUT_EFFECT:
                remedy = _REMEDIES.get(name, "write the option into the model's files, or leave it out")
                raise ValueError(f"{argument}[{name!r}] is not supported: {remedy}")
