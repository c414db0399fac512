"""What other libraries say: the reason in one line, whole, without codes, stacks and paths."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from crossrank.reasons import reason_of


@pytest.fixture
def unknown_operator(tmp_path: Path) -> Path:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Nope", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_onnx_runtime(unknown_operator: Path):
    import onnxruntime

    with pytest.raises(Exception, match="INVALID_GRAPH") as caught:
        onnxruntime.InferenceSession(str(unknown_operator))
    reason = reason_of(caught.value)
    assert reason.startswith("This is an invalid model. In Node,")
    assert "No Op registered for Nope" in reason
    assert str(unknown_operator) not in reason


def test_openvino(unknown_operator: Path):
    import openvino

    with pytest.raises(RuntimeError) as caught:
        openvino.Core().compile_model(str(unknown_operator), "CPU")
    reason = reason_of(caught.value)
    assert "No conversion rule found for operations: Nope" in reason
    assert ".cpp" not in reason
    assert "Exception from" not in reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("it broke"), "it broke"),
        (ValueError("first\n\n  second  line\nfirst"), "ValueError: first; second line"),
        (KeyError(), "KeyError"),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code. Status Message: /onnxruntime_src/a/b.h:563 "
                "void onnxruntime::Iterator::Init(ptrdiff_t, ptrdiff_t) axis == 1 was false. 512 by 513"
            ),
            "Non-zero status code. Status Message: axis == 1 was false. 512 by 513",
        ),
        (ValueError("x" * 900), f"ValueError: {'x' * 800}... (100 more characters)"),
    ],
)
def test_others(error: Exception, reason: str):
    assert reason_of(error) == reason
