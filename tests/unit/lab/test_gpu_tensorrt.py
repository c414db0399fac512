"""`make bench-tensorrt`: wheels in pieces, steps that end at their limit, and what is said without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crossrank.engines.tensorrt.device import device_fault
from lab.gpu import questions, tensorrt, wheels
from lab.gpu.questions import NOT_RUN
from lab.gpu.tensorrt import Script
from tests.conftest import ROOT
from tests.engine_bundle import write_fp16_bundle
from tests.fake_builder import FakeDriver, install
from tests.fake_tensorrt import RTX


def packed(tmp_path: Path) -> Path:
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "b-1-py3-none-any.whl").write_bytes(b"b" * 999)
    (tmp_path / "empty-1-py3-none-any.whl").touch()
    wheels.pack(sorted(tmp_path.glob("*.whl")), tmp_path / "pieces", piece_bytes=1000)
    return tmp_path / "pieces"


def test_pieces_are_small_and_join_to_the_same_wheels(tmp_path: Path) -> None:
    pieces = packed(tmp_path)
    assert max(path.stat().st_size for path in pieces.glob("*.whl.*")) == 1000
    # As on a machine where nothing is installed: no package of ours or of others.
    command = [sys.executable, "-I", str(ROOT / "perf" / "lab" / "gpu" / "wheels.py"), "unpack"]
    subprocess.run([*command, str(pieces), str(tmp_path / "joined")], check=True, capture_output=True)
    for wheel in tmp_path.glob("*.whl"):
        assert (tmp_path / "joined" / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "a-1-py3-none-any.whl.001").write_bytes(b"x" * 1000), "has sha256 .* carry it again"),
        (lambda d: (d / "a-1-py3-none-any.whl.001").unlink(), r"whl\.001 is missing: carry it too"),
        (lambda d: (d / "wheels.json").unlink(), r"holds no wheels\.json: make it with wheels\.py pack"),
        (
            lambda d: (d / "wheels.json").write_text('{"../x.whl": {"sha256": "", "pieces": []}}'),
            r"names '\.\./x\.whl', which is no file of",
        ),
    ],
    ids=["changed", "missing", "no index", "name that leads elsewhere"],
)
def test_damaged_pieces_give_no_wheel(tmp_path: Path, damage, message: str) -> None:
    pieces = packed(tmp_path)
    damage(pieces)
    with pytest.raises(wheels.WheelError, match=message):
        wheels.unpack(pieces, tmp_path / "joined")
    assert not (tmp_path / "joined" / "a-1-py3-none-any.whl").exists()
    assert not list((tmp_path / "joined").glob(".*")) if (tmp_path / "joined").exists() else True


class Scripted(Script):
    """Asks commands of the test's own in place of the questions."""

    def __init__(self, tmp_path: Path, commands: dict[str, str], gpu: str = "", **options) -> None:
        super().__init__(tmp_path / "out", tmp_path, options.pop("limit_s", 60.0), rehearse=False, gpu=gpu)
        self.commands = commands

    def _command(self, name: str, answer: Path) -> list[str]:
        return [sys.executable, "-c", self.commands[name].format(answer=answer)]


def states(script: Script) -> dict[str, str]:
    return {step.name: step.state for step in script.steps}


def test_a_step_that_fails_or_hangs_loses_nothing_of_the_others(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(tensorrt._LIMITS_S, "parity", 1.5)
    child = tmp_path / "child"
    script = Scripted(
        tmp_path,
        {
            "bundles": "open('{answer}', 'w').write('{{\"models\": 2}}')",
            "load": "raise SystemExit('no such plan')",
            "parity": "import subprocess, sys, time; open('{answer}', 'w').write('{{\"half\": 1}}'); "
            f"child = subprocess.Popen(['sleep', '60']); open({str(child)!r}, 'w').write(str(child.pid)); time.sleep(60)",
            "rates": f"raise SystemExit({NOT_RUN})",
        },
    )
    begin = time.monotonic()
    script.run(["bundles", "load", "parity", "rates"])
    assert time.monotonic() - begin < 30
    assert states(script) == {"bundles": "ok", "load": "failed", "parity": "timed out", "rates": "not run"}
    report = json.loads((tmp_path / "out" / "tensorrt.json").read_text())
    assert [step["answer"] for step in report["steps"]] == [{"models": 2}, {}, {"half": 1}, {}]
    assert report["steps"][1]["reason"] == "exit code 1: no such plan"
    assert report["hardware"]["cores"] > 0
    assert script.exit_code() == 1
    # What the step started has ended with it: a zombie at most, which nobody here reaps.
    status = Path(f"/proc/{child.read_text()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_without_a_gpu_nothing_is_measured_and_the_exit_code_says_so(tmp_path: Path) -> None:
    script = Scripted(tmp_path, {"bundles": "pass"}, gpu="no NVIDIA driver")
    script.run(["bundles", "parity", "rates", "gateway", "tests"])
    assert states(script) == {"bundles": "ok", **dict.fromkeys(("parity", "rates", "gateway", "tests"), "not run")}
    assert {step.reason for step in script.steps[1:]} == {"no GPU: no NVIDIA driver"}
    assert script.exit_code() == 3


def test_steps_after_the_end_of_the_time_are_not_run(tmp_path: Path) -> None:
    script = Scripted(tmp_path, {"bundles": "pass"}, limit_s=0.5)
    script.run(["bundles"])
    assert [(step.state, step.reason) for step in script.steps] == [("not run", "the time is over")]


@pytest.mark.parametrize(
    ("answer", "engines", "sm"),
    [
        ('{{"sm": 89, "loads": true, "runs": true}}', ("cuda", "tensorrt"), None),
        ('{{"sm": 90, "loads": true, "runs": true}}', ("cuda", "tensorrt"), "80"),
        ('{{"sm": 90, "loads": false, "runs": false}}', ("cuda",), None),
    ],
    ids=["listed", "unlisted but runs", "refused"],
)
def test_what_loads_decides_what_else_is_asked(tmp_path: Path, monkeypatch, answer: str, engines, sm) -> None:
    monkeypatch.delenv("CROSSRANK_TENSORRT_SM", raising=False)
    script = Scripted(tmp_path, {"load": f"open('{{answer}}', 'w').write('{answer}')"})
    script.run(["load"])
    assert tuple(script._engines) == engines
    assert script._environment.get("CROSSRANK_TENSORRT_SM") == sm


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "does not run"])
def test_whether_a_plan_loads_is_answered_step_by_step(monkeypatch, builtin, tmp_path: Path, fails: bool) -> None:
    """Behind stand-ins of TensorRT for RTX's runtime and of an H100: this code must not meet its first GPU unproved."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'crossrank[tensorrt]'")
    write_fp16_bundle(builtin, tmp_path / "tinybert-l2", max_length=80)
    install(monkeypatch, RTX, FakeDriver("NVIDIA H100", 90), fails=lambda: fails)
    kept: list[dict] = []
    answer = questions.load(tmp_path, (), lambda answer: kept.append(dict(answer)))
    assert (answer["gpu"], answer["sm"], answer["validity"], answer["deserializes"]) == (
        "NVIDIA H100",
        90,
        "VALID",
        True,
    )
    assert (answer["loads"], answer["runs"]) == (True, not fails)
    assert len(kept) == 3
    if fails:
        assert "did not run a batch" in answer["refused"]
    else:
        assert answer["max_delta_logit"] < 2e-2


@pytest.mark.slow
def test_the_script_builds_the_plan_here_and_says_that_it_did_not_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'crossrank[tensorrt]'")
    if not device_fault():
        pytest.skip("an NVIDIA GPU is here")
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [str(ROOT / "perf" / "lab" / "gpu" / "tensorrt.sh"), "--out", str(tmp_path / "out")]
    # Without the second model, which is large: MiniLM-L6's shape is left out where PyTorch is not installed.
    stub = tmp_path / "no-torch" / "torch"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('none here', name='torch')")
    env["PYTHONPATH"] = f"{stub.parent}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [*command, "--only", "bundles", "--only", "load", "--only", "tests"],
        capture_output=True, text=True, env=env, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr + done.stdout
    bundles, load, tests = json.loads((tmp_path / "out" / "tensorrt.json").read_text())["steps"]
    assert (bundles["state"], load["state"], tests["state"]) == ("ok", "not run", "not run")
    assert bundles["answer"]["minilm-l6"] == {
        "left_out": "models of random weights are made with torch: pip install 'crossrank[export]'"
    }
    assert load["answer"]["plan"].startswith("model.sm80.rtx")
    assert load["reason"].startswith("no GPU: no NVIDIA driver is installed here")
    assert "(the plan for 8.0 was built, " in load["reason"]
