"""Add up beforehand embedding tables whose rows are always added.

BERT computes `word[id] + segment[s] + position[p]` with two values of s, and p counting from 0: one table of
`segment[s] + position[p]` holds all sums. A table that is always read at one row (RoBERTa's segments) is added to
another. `token_type_ids` are read as before; only the order of two additions changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank_export.passes.emit import Emitter, constant_of, integers_of, only_consumer, redirect
from crossrank_export.passes.report import PassReport

NAME = "embeddings"
_MAX_SEGMENTS = 4


@dataclass(frozen=True)
class Lookup:
    """A term of the sum: rows of a constant table.

    Attributes:
        table: float32 [rows, hidden].
        index: Indices of the rows, integers [batch or 1, sequence].
        value: The value in the graph that holds the rows; None where the table is new.
    """

    table: NDArray[np.float32]
    index: ir.Value
    value: ir.Value | None

    @property
    def constant_row(self) -> int | None:
        """Return the only row that is ever read; None where there are several."""
        return 0 if len(self.table) == 1 else _only_element(self.index)


def fold_embeddings(model: ir.Model) -> PassReport:
    """Merge the tables of the sum of embeddings, in place."""
    for node in model.graph:
        terms = sum_of_lookups(node)
        if len(terms) >= 2:
            break
    else:
        return PassReport(NAME, False, "No sum of embeddings was recognised.")
    emit = Emitter(model.graph, NAME)
    before = len(terms)
    terms = _fold_segments(emit, _fold_constant_rows(terms))
    if len(terms) == before:
        return PassReport(NAME, False, "No two tables of the sum of embeddings are read together.")
    rows = [
        term.value if term.value is not None else emit.op("Gather", emit.constant(term.table, "table"), term.index)
        for term in terms
    ]
    total = rows[0]
    for row in rows[1:]:
        total = emit.op("Add", total, row)
    total.shape = node.outputs[0].shape
    redirect(node.outputs[0], total)
    model.graph.sort()
    return PassReport(NAME, True, f"{before} embedding tables became {len(terms)}.")


def sum_of_lookups(root: ir.Node) -> list[Lookup]:
    """Return the terms of a tree of Adds whose leaves are all lookups; an empty list otherwise."""
    reader = only_consumer(root.outputs[0]) if root.op_type == "Add" else root
    if root.op_type != "Add" or (reader is not None and reader.op_type == "Add"):
        return []
    terms: list[Lookup] = []
    queue: list[ir.Value | None] = list(root.inputs)
    while queue:
        value = queue.pop()
        node = value.producer() if value is not None else None
        if node is None or value is None or only_consumer(value) is None:
            return []
        if node.op_type == "Add":
            queue.extend(node.inputs)
            continue
        table = constant_of(node.inputs[0]) if node.op_type == "Gather" else None
        index = node.inputs[1] if table is not None else None
        if table is None or table.ndim != 2 or index is None or node.attributes.get_int("axis", 0) != 0:
            return []
        terms.append(Lookup(table, index, value))
    return terms


def _fold_constant_rows(terms: list[Lookup]) -> list[Lookup]:
    """Add the row of tables that are read at one row only to the smallest of the other tables."""
    rows = [term for term in terms if term.constant_row is not None]
    others = [term for term in terms if term.constant_row is None]
    if not rows or not others:
        return terms
    smallest = min(others, key=lambda term: len(term.table))
    added = np.sum([row.table[row.constant_row or 0].astype(np.float64) for row in rows], axis=0)
    table = (smallest.table + added).astype(np.float32)
    return [Lookup(table, term.index, None) if term is smallest else term for term in others]


def _fold_segments(emit: Emitter, terms: list[Lookup]) -> list[Lookup]:
    """Write a table of all sums of a segment and a position, read at segment * positions + position."""
    segments = next((term for term in terms if len(term.table) <= _MAX_SEGMENTS), None)
    counted = next((term for term in terms if term is not segments and counts_from_zero(term.index)), None)
    if segments is None or counted is None or segments.index.dtype is None:
        return terms
    dtype, positions = segments.index.dtype, len(counted.table)
    table = segments.table[:, None, :].astype(np.float64) + counted.table[None, :, :]
    ends = counted.index.producer()
    count = emit.constant(np.arange(positions, dtype=dtype.numpy())[None, :], "positions")
    if ends is None or ends.inputs[2] is None:
        return terms
    place = emit.op("Slice", count, emit.dims(0), ends.inputs[2], emit.dims(1), like=segments.index)
    stride = emit.constant(np.array(positions, dtype.numpy()), "stride")
    place = emit.op("Add", emit.op("Mul", segments.index, stride, like=place), place, like=place)
    merged = Lookup(table.reshape(-1, table.shape[-1]).astype(np.float32), place, None)
    return [term for term in terms if term is not segments and term is not counted] + [merged]


def counts_from_zero(index: ir.Value) -> bool:
    """Return whether an index is 0, 1, 2 ... over the sequence, the same for every pair: [1, sequence]."""
    node = index.producer()
    numbers: NDArray[Any] | None = constant_of(node.inputs[0]) if node is not None and node.inputs else None
    if node is None or node.op_type != "Slice" or numbers is None or numbers.ndim != 2 or len(numbers) != 1:
        return False
    options = [integers_of(option) for option in node.inputs[1:]]
    starts_at_zero = options[0] == [0] and options[2:3] in ([[1]], [[-1]]) and options[3:] in ([], [[1]])
    return starts_at_zero and bool((numbers[0] == np.arange(numbers.shape[1])).all())


def _only_element(index: ir.Value) -> int | None:
    """Return the only number in an index, through slices and expansions; None where there are several."""
    array = constant_of(index)
    if array is not None:
        return int(array.flat[0]) if array.size and (array == array.flat[0]).all() else None
    node = index.producer()
    if node is None or node.op_type not in ("Slice", "Expand", "Reshape", "Unsqueeze", "Cast"):
        return None
    return _only_element(node.inputs[0]) if node.inputs[0] is not None else None
