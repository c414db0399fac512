"""The native code as ARM computes it: compiled by a cross compiler, run in an emulator.

Both are Debian packages, g++-aarch64-linux-gnu and qemu-user-static; without them these tests skip.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossrank.native.interface import INTERFACE
from crossrank.native.weights import Shape
from crossrank.packed import PairBatch
from crossrank_export.bert import score_pairs
from tests.conftest import ROOT
from tests.native_models import TINY, random_pairs, random_weights

NATIVE = ROOT / "server" / "crossrank" / "native"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
# As in setup.py, but for the level: -O3 takes twice as long to compile.
FLAGS = ["-std=c++17", "-O2", "-Wall", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}")
emulated = pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"no {EMULATOR}")


def compiled(target: Path, *arguments: str) -> Path:
    command = [COMPILER, *FLAGS, f'-DCROSSRANK_INTERFACE="{INTERFACE}"', f"-I{NATIVE}", *arguments, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [str(NATIVE / name) for name in ("api.cpp", "cpu.cpp")]
    target = tmp_path_factory.mktemp("aarch64") / "scores"
    return compiled(target, "-static", str(ROOT / "tests" / "native_scores.cpp"), *sources)


def score(scorer: Path, shape: Shape, batch: PairBatch) -> np.ndarray:
    sizes = [getattr(shape, name) for name in Shape.INTEGERS]
    weights = random_weights(shape)
    message = [struct.pack("<7if", *sizes, shape.epsilon), struct.pack("<q", len(weights))]
    for role, array in weights.items():
        message += [struct.pack("<q", len(role)), role.encode(), struct.pack("<q", array.size), array.tobytes()]
    message += [struct.pack("<qq", len(batch.input_ids), len(batch)), batch.input_ids.tobytes()]
    message += [batch.token_type_ids.tobytes(), batch.offsets.tobytes()]
    done = subprocess.run([EMULATOR, str(scorer)], input=b"".join(message), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.frombuffer(done.stdout, np.float32)


@emulated
@pytest.mark.parametrize(
    "shape",
    [TINY, replace(TINY, hidden=384, heads=12, ffn=1536), replace(TINY, hidden=90, heads=5, ffn=77)],
    ids=["TinyBERT-L2", "MiniLM-L2", "nothing even"],
)
def test_the_portable_kernel_computes_bert_on_arm(scorer: Path, shape: Shape) -> None:
    batch = random_pairs(shape, [1, 2, 5, 16, 33, 97])
    expected = score_pairs(shape, random_weights(shape), batch)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(score(scorer, shape, batch), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["wordpiece", "padding"])
def test_tokenizer_and_padding_compile_for_arm_without_warnings(tmp_path: Path, name: str) -> None:
    compiled(tmp_path / f"{name}.so", "-shared", "-fPIC", "-Werror", str(NATIVE / f"{name}.cpp"))
