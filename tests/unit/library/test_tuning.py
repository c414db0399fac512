"""What `crossrank tune` found is used on the machine it was found on, and nowhere else."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle, load_bundle, write_manifest
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.tuning import (
    EngineConfig,
    Machine,
    new_tuning,
    read_tuning,
    this_machine,
    tuning_path,
    write_tuning,
)
from crossrank.errors import SetupError
from crossrank.packed import PairBatch
from crossrank_server.serving.startup import load_service
from crossrank_server.settings import ServeSettings

# Nothing that `auto` would take by itself.
CONFIG = EngineConfig(engine="onnxruntime", precision="fp32", threads=3, batch_tokens=777, length_step=32, row_step=8)


def keep(bundle: Bundle, cache: Path, machine: Machine | None = None) -> Path:
    tuning = new_tuning(bundle, CONFIG, "2026-11-24T12:00:00+00:00", {})
    return write_tuning(bundle, tuning.model_copy(update={"machine": machine or this_machine()}), cache)


def engine_served(cache: Path, **flags: object) -> EmbeddedEngine:
    service = load_service(["builtin"], ServeSettings(cache_dir=cache, **flags))  # type: ignore[arg-type]
    served = service.pool.slots[0].served
    assert served is not None
    assert isinstance(served.engine, EmbeddedEngine)
    return served.engine


def test_serve_takes_what_was_found_and_says_so(
    builtin: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(builtin, tmp_path)
    with caplog.at_level(logging.INFO, "crossrank"):
        engine = engine_served(tmp_path)
    assert (engine.name, engine.precision, engine.concurrency, engine.batch_tokens) == ("onnxruntime", "fp32", 3, 777)
    nine = PairBatch(np.full(9 * 40, 7, np.int32), np.zeros(9 * 40, np.int32), np.arange(10, dtype=np.int64) * 40)
    assert engine.padded_shape(nine) == (16, 64)
    assert "found fastest on 2026-11-24" in caplog.text
    assert "3 threads, batches of 777 tokens" in caplog.text


def test_scores_do_not_depend_on_how_batches_are_padded(builtin: Bundle, tmp_path: Path) -> None:
    plain = engine_served(tmp_path, engine="onnxruntime", precision="fp32")
    keep(builtin, tmp_path)
    tuned = engine_served(tmp_path)
    ids = np.random.default_rng(0).integers(1000, 2000, 3 * 40, dtype=np.int32)
    batch = PairBatch(ids, np.zeros(3 * 40, np.int32), np.arange(4, dtype=np.int64) * 40)
    np.testing.assert_allclose(tuned.infer(batch), plain.infer(batch), atol=1e-5)


def test_flags_win_over_what_was_found(builtin: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(builtin, tmp_path)
    assert engine_served(tmp_path, threads=1).concurrency == 1
    assert engine_served(tmp_path, threads=1).batch_tokens == 777
    assert engine_served(tmp_path, engine="onnxruntime").batch_tokens == 777
    with caplog.at_level(logging.INFO, "crossrank"):
        other = engine_served(tmp_path, engine="openvino", precision="fp32")
    assert (other.name, other.batch_tokens, other.length_step) == ("openvino", 2048, 16)
    assert "--engine and --precision rule out" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cpu": "Other CPU"}, "cpu Other CPU instead of"),
        ({"cores": 640}, "cores 640 instead of"),
        ({"versions": {"crossrank": "0.0.1"}}, "versions {'crossrank': '0.0.1'} instead of"),
        ({"flags": ["amx_fp4"]}, "flags ['amx_fp4'] instead of"),
    ],
)
def test_what_another_machine_or_version_found_is_ignored_and_said(
    builtin: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object], said: str
) -> None:
    keep(builtin, tmp_path, this_machine().model_copy(update=change))
    assert read_tuning(builtin, tmp_path) is None
    assert said in caplog.text
    assert "run crossrank tune again" in caplog.text


def test_machines_that_share_a_cache_keep_their_own_choice(builtin: Bundle, tmp_path: Path) -> None:
    keep(builtin, tmp_path)
    keep(builtin, tmp_path, this_machine().model_copy(update={"cores": 640}))
    found = read_tuning(builtin, tmp_path)
    assert found is not None
    assert found.config == CONFIG


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "config": {"threads": 0}}'])
def test_a_damaged_file_is_ignored_and_said(
    builtin: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    keep(builtin, tmp_path).write_text(content)
    assert read_tuning(builtin, tmp_path) is None
    assert "damaged" in caplog.text


def test_a_file_copied_from_another_machine_by_hand_is_ignored(builtin: Bundle, tmp_path: Path) -> None:
    other = keep(builtin, tmp_path, this_machine().model_copy(update={"cores": 640}))
    shutil.copyfile(other, tuning_path(builtin, tmp_path))
    assert read_tuning(builtin, tmp_path) is None


def test_a_bundle_with_other_content_has_no_choice_yet(builtin: Bundle, tmp_path: Path) -> None:
    keep(builtin, tmp_path)
    shutil.copytree(builtin.path, tmp_path / "changed")
    write_manifest(tmp_path / "changed", builtin.manifest.model_copy(update={"max_length": 128}))
    assert read_tuning(load_bundle(tmp_path / "changed"), tmp_path) is None


def test_a_cache_that_cannot_be_written_is_named(builtin: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tuning").write_text("a file in its place")
    with pytest.raises(SetupError, match="--cache-dir"):
        keep(builtin, tmp_path)
