"""The logits of graphs that end in something else: found exactly, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from crossrank.errors import ModelSourceError
from crossrank_export.outputs import take_logits
from crossrank_export.passes.interface import unify_interface
from tests.onnx_exports import session_of

IDS = np.arange(12, dtype=np.int64).reshape(3, 4) % 7


def head(labels: int, *nodes: onnx.NodeProto, output: str, shape: list[Any], opset: int = 17) -> ir.Model:
    """Return a graph of embeddings, a mean and a classifier, called `raw`, and what comes after it."""
    rng = np.random.default_rng(labels)
    tables = {"words": rng.normal(size=(7, 8)), "weight": rng.normal(size=(8, labels))}
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tables.items()]
    constants += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in SHAPES.items()]
    body = [
        helper.make_node("Gather", ["words", "input_ids"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["raw"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    last = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    graph = helper.make_graph([*body, *nodes], "head", [ids], [last], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return ir.from_proto(model)


SHAPES = {"last": [1], "column": [-1, 1], "row": [-1]}


def node(kind: str, before: str, after: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, [before, *more], [after], **attributes)


def run(model: ir.Model) -> NDArray[np.float32]:
    (values,) = session_of(model).run(None, {"input_ids": IDS.astype(ids_type(model))})
    return np.asarray(values)


def ids_type(model: ir.Model) -> Any:
    return np.int32 if model.graph.inputs[0].dtype == ir.DataType.INT32 else np.int64


def raw(labels: int) -> NDArray[np.float32]:
    return run(head(labels, output="raw", shape=["batch", labels]))


ENDS: dict[str, tuple[int, Callable[[], ir.Model], str]] = {
    "sigmoid": (1, lambda: head(1, node("Sigmoid", "raw", "scores"), output="scores", shape=["batch", 1]), "Sigmoid"),
    "sigmoid called logits": (
        1,
        lambda: head(1, node("Sigmoid", "raw", "logits"), output="logits", shape=["batch", 1]),
        "Sigmoid",
    ),
    "sigmoid of several labels": (
        3,
        lambda: head(3, node("Sigmoid", "raw", "scores"), output="scores", shape=["batch", 3]),
        "Sigmoid",
    ),
    "softmax": (3, lambda: head(3, node("Softmax", "raw", "p", axis=-1), output="p", shape=["batch", 3]), "Softmax"),
    "softmax of one": (
        1,
        lambda: head(1, node("Softmax", "raw", "p", axis=-1), output="p", shape=["batch", 1]),
        "Softmax",
    ),
    "sigmoid, identity, cast": (
        1,
        lambda: head(
            1,
            node("Sigmoid", "raw", "p"),
            node("Identity", "p", "same"),
            node("Cast", "same", "scores", to=TensorProto.FLOAT),
            output="scores",
            shape=["batch", 1],
        ),
        "Sigmoid",
    ),
    "sigmoid, squeezed": (
        1,
        lambda: head(
            1, node("Sigmoid", "raw", "p"), node("Squeeze", "p", "scores", "last"), output="scores", shape=["batch"]
        ),
        "Sigmoid",
    ),
    "squeezed, sigmoid": (
        1,
        lambda: head(
            1, node("Squeeze", "raw", "flat", "last"), node("Sigmoid", "flat", "logits"), output="logits", shape=["batch"]
        ),
        "Sigmoid",
    ),
    "squeezed": (1, lambda: head(1, node("Squeeze", "raw", "scores", "last"), output="scores", shape=["batch"]), "column"),
    "summed to a row": (
        1,
        lambda: head(
            1, node("ReduceSum", "raw", "scores", "last", keepdims=0), output="scores", shape=["batch"]
        ),
        "column",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "build", "detail"), ENDS.values(), ids=list(ENDS))
def test_the_logits_are_what_the_classifier_gives(labels: int, build: Callable[[], ir.Model], detail: str) -> None:
    model = build()
    report = take_logits(model, labels, "model.onnx")
    assert report is not None
    assert detail in report.detail
    np.testing.assert_array_equal(run(model), raw(labels))
    # And under the name that all bundles have.
    unify_interface(model)
    assert [value.name for value in model.graph.outputs] == ["logits"]
    np.testing.assert_array_equal(run(model), raw(labels))


def test_a_graph_that_gives_logits_is_left_as_it_is() -> None:
    model = head(2, output="raw", shape=["batch", 2])
    assert take_logits(model, 2, "model.onnx") is None
    np.testing.assert_array_equal(run(model), raw(2))


def test_an_output_is_renamed_where_an_inner_value_has_its_name() -> None:
    nodes = node("Identity", "raw", "logits"), node("Mul", "logits", "scores", "half")
    model = ir.to_proto(head(1, node("Identity", "raw", "logits"), output="logits", shape=["batch", 1]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.5], np.float32), "half"))
    model.graph.node.append(nodes[1])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1]))
    graph = ir.from_proto(model)
    assert take_logits(graph, 1, "model.onnx") is None
    unify_interface(graph)
    assert [value.name for value in graph.graph.outputs] == ["logits"]
    np.testing.assert_array_equal(run(graph), 0.5 * raw(1))


@pytest.mark.parametrize(
    ("output", "shape"),
    [("hidden", ["batch", "sequence", 8]), ("hidden", None)],
    ids=["its shape says so", "its shape is inferred"],
)
def test_an_encoder_alone_is_named_as_such(output: str, shape: list[Any] | None) -> None:
    model = head(1, output=output, shape=["batch", "sequence", 8])
    if shape is None:
        model.graph.outputs[0].shape = None
    with pytest.raises(
        ModelSourceError, match=r"model.onnx is an encoder without its classification head .*: export the"
    ):
        take_logits(model, 1, "model.onnx")


def test_outputs_of_an_encoder_are_known_by_their_names() -> None:
    model = head(8, node("Identity", "raw", "pooler_output"), output="pooler_output", shape=["batch", 8])
    with pytest.raises(ModelSourceError, match=r"\(it gives pooler_output\)"):
        take_logits(model, 1, "model.onnx")


def test_outputs_that_cannot_be_told_apart_are_refused() -> None:
    model = head(1, output="raw", shape=["batch", 1])
    model.graph.outputs.append(model.graph.node(1).outputs[0])
    with pytest.raises(ModelSourceError, match=r"has outputs \['raw', 'mean'\]: a cross-encoder has one, `logits`"):
        take_logits(model, 1, "model.onnx")
