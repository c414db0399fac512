"""Keep what `crossrank tune` found fastest on this machine in a file that `crossrank serve` reads.

    CACHE/tuning/OWNER--NAME@BUNDLE/MACHINE.json

BUNDLE and MACHINE are hashes, so that a cache shared by different machines holds the choice of each. A choice made for
another CPU, number of cores or version of an engine says nothing about this machine and is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crossrank.bundles.bundle import MANIFEST, Bundle, sha256_of
from crossrank.bundles.cache import bundle_name, default_cache_dir
from crossrank.engines.cpu import available_cores, cpu_flags, cpu_name
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import DEVICES, Device, EngineName, PrecisionName
from crossrank.engines.select import make_engine
from crossrank.errors import SetupError

_log = logging.getLogger("crossrank")

# Packages and CPU flags that decide which configuration is fastest.
_PACKAGES = ("crossrank", "onnxruntime", "openvino")
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class EngineConfig(_Frozen):
    """Hold all settings of an embedded engine."""

    engine: EngineName
    precision: PrecisionName
    threads: int = Field(ge=1, description="inferences at a time, one thread each (OpenVINO: streams)")
    batch_tokens: int = Field(ge=1, description="padded tokens of a batch at most")
    length_step: int = Field(ge=1, description="lengths are padded to a multiple of it, in tokens")
    row_step: int = Field(ge=1, description="rows are padded to a multiple of it")


class Machine(_Frozen):
    """Describe the machine that a measurement was made on."""

    cpu: str
    cores: int
    flags: list[str] = Field(description="instruction sets that matter; CPUs of one name differ in them")
    versions: dict[str, str]

    def difference(self, other: Machine) -> str:
        """Return in which fields the two differ, with both values; empty if in none."""
        own, others = self.model_dump(), other.model_dump()
        return ", ".join(f"{name} {others[name]} instead of {own[name]}" for name in own if own[name] != others[name])


class Tuning(_Frozen):
    """Hold the settings chosen for a bundle on a machine, with the measured figures."""

    format: Literal[1] = 1
    model_id: str
    bundle: str = Field(description="sha256 of the bundle's manifest, which has those of its files")
    machine: Machine
    date: str
    config: EngineConfig
    figures: dict[str, Any] = Field(default_factory=dict, description="as measured")


@cache
def this_machine() -> Machine:
    """Return the CPU, the cores this process may use, and the versions of the engines."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    flags = cpu_flags()
    return Machine(
        cpu=cpu_name(), cores=available_cores(), flags=[flag for flag in _FLAGS if flag in flags], versions=versions
    )


def config_of(engine: EmbeddedEngine) -> EngineConfig:
    """Return the settings of a loaded engine."""
    return EngineConfig(
        engine=engine.name,  # type: ignore[arg-type] # pydantic checks it
        precision=engine.precision,  # type: ignore[arg-type]
        threads=engine.concurrency,
        batch_tokens=engine.batch_tokens,
        length_step=engine.length_step,
        row_step=engine.row_step,
    )


def apply_config(engine: EmbeddedEngine, config: EngineConfig) -> None:
    """Change how a loaded engine's batches are cut and padded; its precision and threads stay."""
    engine.batch_tokens = config.batch_tokens
    engine.length_step = config.length_step
    engine.row_step = config.row_step


def make_tuned_engine(
    bundle: Bundle, config: EngineConfig, threads: int | None = None, cache_dir: Path | None = None
) -> EmbeddedEngine:
    """Load a bundle as the configuration says.

    Args:
        bundle: The model.
        config: The settings found fastest.
        threads: Overrides those of the configuration.
        cache_dir: See `make_engine`.

    Raises:
        SetupError, BundleError: See `make_engine`.
    """
    engine = make_engine(bundle, config.engine, config.precision, threads or config.threads, cache_dir=cache_dir)
    apply_config(engine, config)
    return engine


def load_engine(
    bundle: Bundle,
    name: EngineName = "auto",
    precision: PrecisionName = "auto",
    threads: int | None = None,
    cache_dir: Path | None = None,
    device: Device | None = None,
) -> EmbeddedEngine:
    """Load a bundle as `crossrank tune` found it fastest here, unless what is asked for rules that out.

    Otherwise, and without a tuning, as `make_engine` does.

    Args:
        bundle: The model.
        name: Of an engine of this process, or `auto`.
        precision: The arithmetic, or `auto`.
        threads: Inferences at the same time, in place of those found fastest.
        cache_dir: Where tunings and what engines build are kept; defaults to `default_cache_dir()`.
        device: Leave out engines that compute elsewhere.

    Raises:
        SetupError, BundleError, EngineFailure: See `make_engine`.
    """
    tuning = read_tuning(bundle, cache_dir)
    if tuning is None or device not in (None, DEVICES[tuning.config.engine]):
        return make_engine(bundle, name, precision, threads, device, cache_dir)
    wanted, found = (name, precision), (tuning.config.engine, tuning.config.precision)
    if any(asked not in ("auto", value) for asked, value in zip(wanted, found, strict=True)):
        _log.info(
            "%s: crossrank tune found %s %s fastest here, which --engine and --precision rule out: not used",
            bundle.manifest.model_id,
            *found,
        )
        return make_engine(bundle, name, precision, threads, device, cache_dir)
    engine = make_tuned_engine(bundle, tuning.config, threads, cache_dir)
    _log.info(
        "%s: as crossrank tune found fastest on %s: %d threads, batches of %d tokens, padded to %d tokens, %d rows",
        bundle.manifest.model_id,
        tuning.date,
        engine.concurrency,
        engine.batch_tokens,
        engine.length_step,
        engine.row_step,
    )
    return engine


def tuning_path(bundle: Bundle, cache_dir: Path | None = None, machine: Machine | None = None) -> Path:
    """Return the file of the choice for a bundle on a machine, which defaults to this one."""
    described = (machine or this_machine()).model_dump_json()
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    name = bundle_name(bundle.manifest.model_id, _bundle_sha256(bundle)[:16])
    return (cache_dir or default_cache_dir()) / "tuning" / name / f"{key}.json"


def new_tuning(bundle: Bundle, config: EngineConfig, date: str, figures: dict[str, Any]) -> Tuning:
    """Return a choice made on this machine."""
    return Tuning(
        model_id=bundle.manifest.model_id,
        bundle=_bundle_sha256(bundle),
        machine=this_machine(),
        date=date,
        config=config,
        figures=figures,
    )


def write_tuning(bundle: Bundle, tuning: Tuning, cache_dir: Path | None = None) -> Path:
    """Keep a choice, atomically, and return its file.

    Raises:
        SetupError: The cache cannot be written.
    """
    path = tuning_path(bundle, cache_dir, tuning.machine)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(tuning.model_dump(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written ({error.strerror}): name another with --cache-dir") from None
    return path


def read_tuning(bundle: Bundle, cache_dir: Path | None = None) -> Tuning | None:
    """Return the choice for this bundle made on this machine; else None, after saying why another is ignored."""
    path = tuning_path(bundle, cache_dir)
    if path.is_file():
        tuning = _parse(path)
        # The name says so already, unless the file was copied by hand.
        if tuning and tuning.bundle == _bundle_sha256(bundle) and tuning.machine == this_machine():
            return tuning
        _log.warning("%s is damaged or not of this machine and is ignored: run crossrank tune again", path)
        return None
    others = sorted(path.parent.glob("*.json"), key=lambda file: file.stat().st_mtime)
    other = _parse(others[-1]) if others else None
    if other:
        _log.warning(
            "%s was tuned on %s for %s; that is ignored here: run crossrank tune again",
            bundle.manifest.model_id,
            other.date,
            this_machine().difference(other.machine),
        )
    return None


def _parse(path: Path) -> Tuning | None:
    try:
        return Tuning.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _bundle_sha256(bundle: Bundle) -> str:
    return sha256_of(bundle.file(MANIFEST))
