"""Build the fp32 ONNX graph of a cross-encoder from its weights by role, in the optimized form of exported graphs.

A constant named after a role holds the role's weights in the layout that the native engine reads. All other constants
have other names.

Queries, keys and values are one matrix product. From the last layer's attention on, only the first token is computed,
as the head reads no other. Tables of embeddings that are always added are merged. The results are exact but for
rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossrank.checkpoints.activations import ACTIVATIONS
from crossrank.checkpoints.emitter import Emitter
from crossrank.checkpoints.position_bias import distance_buckets
from crossrank.checkpoints.tensors import Array
from crossrank.checkpoints.weights import CheckpointWeights

IDS, MASK, TYPES, LOGITS = "input_ids", "attention_mask", "token_type_ids", "logits"
_SUMS = "embeddings.segment_and_position"
# Maximum rows of the merged table of segments and positions, which takes three times its size to build: 4 segments in a
# window of 8,192.
_MOST_SUMS = 4 * 8192


class GraphBuilder:
    """Append the nodes of a model to a graph.

    Args:
        emit: Takes nodes and constants.
        weights: Weights of the model.
        activation: Activation of its layers, a key of ACTIVATIONS.
        pad_token_id: Id of the padding token.
    """

    def __init__(self, emit: Emitter, weights: CheckpointWeights, activation: str, pad_token_id: int) -> None:
        self._emit = emit
        self._weights = weights
        self._activation = activation
        self._padding = pad_token_id if weights.family.padding_id is None else weights.family.padding_id
        self._heads = weights.sizes.heads
        self._width = weights.sizes.hidden // weights.sizes.heads
        # Scale of attention scores, folded into the weights of the queries.
        self._scale = np.float32(self._width**-0.5)

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, int32 [batch, sequence] each."""
        return [IDS, MASK, TYPES] if self._weights.segments > 1 else [IDS, MASK]

    def build(self) -> None:
        """Append all nodes, from the inputs to `logits`, float32 [batch, labels]."""
        state = self._embeddings()
        bias = self._attention_bias()
        for layer in range(self._weights.sizes.layers - 1):
            state = self._layer(f"layer.{layer}.", state, self._merged_attention(f"layer.{layer}.", state, bias))
        at = f"layer.{self._weights.sizes.layers - 1}."
        first = self._emit.op("Gather", state, self._emit.dims(0), axis=1)
        self._head(self._layer(at, first, self._first_attention(at, state, first, bias)))

    # --- embeddings ---------------------------------------------------------------------------------------------

    def _embeddings(self) -> str:
        emit, weights = self._emit, self._weights
        words = emit.op("Gather", emit.tensor("embeddings.word", weights.array("embeddings.word")), IDS)
        counts = weights.family.counts_padding
        places = self._counted_positions() if counts else self._positions()
        name, positions = "embeddings.position", weights.array("embeddings.position")
        total = words
        if weights.segments:
            segments = weights.array("embeddings.segment")
            if weights.segments * weights.positions <= _MOST_SUMS and (weights.segments == 1 or not counts):
                sums = _sum(segments[:, None, :], positions[None, :, :])
                name, positions = _SUMS, sums.reshape(-1, positions.shape[1])
                if weights.segments > 1:
                    stride = emit.tensor("positions_stride", np.array(weights.positions, np.int32))
                    places = emit.op("Add", emit.op("Mul", TYPES, stride), places)
            else:
                table = emit.tensor("embeddings.segment", segments)
                added = emit.op("Gather", table, TYPES) if weights.segments > 1 else table
                total = emit.op("Add", words, added)
        rows = emit.op("Gather", emit.tensor(name, positions), places)
        state = self._norm("embeddings.norm", emit.op("Add", total, rows))
        if weights.embedding_size != weights.sizes.hidden:
            state = self._linear("embeddings.projection", state)
        return state

    def _positions(self) -> str:
        """Return the position ids 0, 1, 2 ... up to the length of the batch, int32 [1, sequence]."""
        emit = self._emit
        count = emit.tensor("positions", np.arange(self._weights.positions, dtype=np.int32)[None, :])
        return emit.op("Slice", count, emit.dims(0), self._length(), emit.dims(1))

    def _counted_positions(self) -> str:
        """Return position ids that count non-padding tokens from the padding id on, int32 [batch, sequence].

        Padding tokens have the padding id as their position.

        Source: `create_position_ids_from_input_ids` of transformers, models/roberta/modeling_roberta.py
        """
        emit = self._emit
        padding = emit.tensor("padding_id", np.array(self._padding, np.int32))
        real = emit.op("Cast", emit.op("Not", emit.op("Equal", IDS, padding)), to=_INT32)
        count = emit.op("Mul", emit.op("CumSum", real, emit.index(1)), real)
        return emit.op("Add", count, padding)

    def _length(self) -> str:
        """Return the number of tokens of the longest pair, int64 [1]."""
        return self._emit.op("Gather", self._emit.op("Shape", IDS), self._emit.dims(1))

    # --- attention ----------------------------------------------------------------------------------------------

    def _attention_bias(self) -> str:
        """Return the bias added to attention scores, float32 [batch, 1 or heads, 1 or sequence, sequence]."""
        emit = self._emit
        mask = emit.op("Cast", emit.op("Unsqueeze", MASK, emit.dims(1, 2)), to=_FLOAT)
        closed = emit.op("Mul", emit.op("Sub", emit.scalar(1), mask), emit.scalar(float(np.finfo(np.float32).min)))
        return emit.op("Add", self._position_bias(), closed) if self._weights.family.attention_bias else closed

    def _position_bias(self) -> str:
        """Return the attention bias by the distance of tokens, float32 [1, heads, sequence, sequence]."""
        emit, positions = self._emit, self._weights.positions
        table = self._weights.array("attention_bias")[distance_buckets(positions)]
        place = self._positions()  # of the keys; [1, sequence]
        queries = emit.op("Transpose", place, perm=[1, 0])
        offset = emit.tensor("distance_offset", np.array(positions - 1, np.int32))
        distance = emit.op("Add", emit.op("Sub", place, queries), offset)
        rows = emit.op("Gather", emit.tensor("distance_bias", table), distance)
        return emit.op("Unsqueeze", emit.op("Transpose", rows, perm=[2, 0, 1]), emit.dims(0))

    def _merged_attention(self, at: str, state: str, bias: str) -> str:
        """Return the context of every token, float32 [batch, sequence, hidden]."""
        emit, weights = self._emit, self._weights
        parts = [
            [weights.array(f"{at}{name}.{kind}") * scale for kind in ("weight", "bias")]
            for name, scale in (("query", self._scale), ("key", np.float32(1)), ("value", np.float32(1)))
        ]
        merged = emit.tensor(f"{at}query_key_value.weight", np.concatenate([part[0] for part in parts]).T)
        added = emit.tensor(f"{at}query_key_value.bias", np.concatenate([part[1] for part in parts]))
        product = emit.op("Add", emit.op("MatMul", state, merged), added)
        split = emit.op("Reshape", product, emit.dims(0, 0, 3, self._heads, self._width))
        split = emit.op("Transpose", split, perm=[2, 0, 3, 1, 4])
        query, key, value = (emit.op("Gather", split, emit.index(part), axis=0) for part in range(3))
        scores = emit.op("MatMul", query, emit.op("Transpose", key, perm=[0, 1, 3, 2]))
        powers = emit.op("Softmax", emit.op("Add", scores, bias), axis=-1)
        context = emit.op("Transpose", emit.op("MatMul", powers, value), perm=[0, 2, 1, 3])
        return emit.op("Reshape", context, emit.dims(0, 0, self._weights.sizes.hidden))

    def _first_attention(self, at: str, state: str, first: str, bias: str) -> str:
        """Return the context of the first token, float32 [batch, 1, hidden], without computing keys and values.

            scores_h = (x Wk_h + bk_h) q_h = x (Wk_h q_h) + constant          (a softmax ignores the constant)
            context_h = p_h (x Wv_h + bv_h) = (p_h x) Wv_h + bv_h             (p_h sums to one)

        Args:
            at: Prefix of the layer's roles.
            state: Input of the layer, float32 [batch, sequence, hidden].
            first: Its first token, float32 [batch, 1, hidden].
            bias: Result of `_attention_bias`.
        """
        emit, weights, heads, width = self._emit, self._weights, self._heads, self._width
        hidden = weights.sizes.hidden
        scaled = weights.array(f"{at}query.weight") * self._scale
        query = emit.op("MatMul", first, emit.tensor(f"{at}scaled_query.weight", scaled.T))
        query = emit.op(
            "Add", query, emit.tensor(f"{at}scaled_query.bias", weights.array(f"{at}query.bias") * self._scale)
        )
        query = emit.op("Transpose", emit.op("Reshape", query, emit.dims(0, heads, width)), perm=[1, 0, 2])
        keys = weights.array(f"{at}key.weight").reshape(heads, width, hidden)
        query = emit.op("MatMul", query, emit.tensor(f"{at}key_by_head", keys))
        query = emit.op("Transpose", query, perm=[1, 0, 2])  # [batch, heads, hidden]
        scores = emit.op("MatMul", query, emit.op("Transpose", state, perm=[0, 2, 1]))
        # The bias of the first query alone, [batch, 1 or heads, sequence].
        bias = emit.op("Gather", bias, emit.index(0), axis=2)
        powers = emit.op("Softmax", emit.op("Add", scores, bias), axis=-1)
        context = emit.op("Transpose", emit.op("MatMul", powers, state), perm=[1, 0, 2])
        values = weights.array(f"{at}value.weight").reshape(heads, width, hidden).transpose(0, 2, 1)
        context = emit.op("MatMul", context, emit.tensor(f"{at}value_by_head", values))
        context = emit.op("Reshape", emit.op("Transpose", context, perm=[1, 0, 2]), emit.dims(0, 1, hidden))
        return emit.op("Add", context, emit.tensor(f"{at}value.bias", weights.array(f"{at}value.bias")))

    # --- layers and head ----------------------------------------------------------------------------------------

    def _layer(self, at: str, state: str, context: str) -> str:
        """Append a layer's part after attention: output projection and feed-forward, each with residual and norm."""
        emit = self._emit
        state = self._norm(f"{at}attention_norm", emit.op("Add", self._linear(f"{at}output", context), state))
        up = ACTIVATIONS[self._activation](emit, self._linear(f"{at}up", state))
        return self._norm(f"{at}output_norm", emit.op("Add", self._linear(f"{at}down", up), state))

    def _head(self, first: str) -> None:
        emit, weights = self._emit, self._weights
        token = emit.op("Gather", first, emit.index(0), axis=1)
        pooled = ACTIVATIONS[weights.family.head_activation](emit, self._dense("pooler", token))
        self._dense("classifier", pooled, LOGITS)

    def _dense(self, role: str, state: str, output: str | None = None) -> str:
        """Append x W^T + b with W [out, in] as one Gemm, for a state of two dimensions."""
        emit, weights = self._emit, self._weights
        weight, bias = (
            emit.tensor(f"{role}.{kind}_of_gemm", weights.array(f"{role}.{kind}")) for kind in ("weight", "bias")
        )
        return emit.op("Gemm", state, weight, bias, transB=1, output=output)

    def _linear(self, role: str, state: str) -> str:
        """Append x W + b with W [in, out]."""
        emit = self._emit
        weight = emit.tensor(f"{role}.weight", self._weights.array(f"{role}.weight").T)
        return emit.op(
            "Add", emit.op("MatMul", state, weight), emit.tensor(f"{role}.bias", self._weights.array(f"{role}.bias"))
        )

    def _norm(self, role: str, state: str) -> str:
        emit, weights = self._emit, self._weights
        weight, bias = (emit.tensor(f"{role}.{kind}", weights.array(f"{role}.{kind}")) for kind in ("weight", "bias"))
        return emit.op("LayerNormalization", state, weight, bias, axis=-1, epsilon=weights.epsilon)


# Values of onnx.TensorProto.DataType.
_FLOAT, _INT32 = 1, 6


def _sum(left: Array, right: Array) -> Array:
    """Return the sum of two arrays, computed in float64 and rounded once to float32."""
    total: NDArray[np.float64] = left.astype(np.float64) + right
    return total.astype(np.float32)
