"""CrossEncoder: what it takes, what it returns, and what it refuses."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crossrank
from crossrank import CrossEncoder
from crossrank.cross_encoder.results import Prediction
from crossrank.errors import CrossrankError, InvalidInput, ModelSourceError

QUERY = "who wrote faust"
DOCUMENTS = ["a cat sat on the mat", "Goethe wrote Faust", "Faust is a play", "Berlin has 3.5 million inhabitants"]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture(scope="module")
def encoder() -> Iterator[CrossEncoder]:
    with CrossEncoder("builtin", precision="fp32") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def logits(encoder: CrossEncoder) -> np.ndarray[Any, Any]:
    return encoder.predict(PAIRS, activation_fn="identity")


def test_scores_are_those_of_the_models_card(encoder: CrossEncoder, logits: np.ndarray[Any, Any]) -> None:
    # As sentence-transformers 6.2 gives them (tests/reference compares many more).
    np.testing.assert_allclose(logits[1], 0.491615, atol=1e-4)
    np.testing.assert_allclose(encoder.predict(PAIRS), 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        PAIRS,
        tuple(PAIRS),
        [list(pair) for pair in PAIRS],
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
    ],
    ids=["list", "tuple", "list of lists", "array of texts", "array of objects"],
)
def test_pairs_come_in_any_sequence(encoder: CrossEncoder, inputs: Any) -> None:
    scores = encoder.predict(inputs)
    assert (scores.dtype, scores.shape) == (np.float32, (4,))
    np.testing.assert_array_equal(scores, encoder.predict(PAIRS))


def test_pairs_come_from_iterators(encoder: CrossEncoder) -> None:
    expected = encoder.predict(PAIRS)
    np.testing.assert_array_equal(encoder.predict(pair for pair in PAIRS), expected)
    np.testing.assert_array_equal(encoder.predict(zip([QUERY] * 4, DOCUMENTS, strict=True)), expected)
    ranked = encoder.rank(QUERY, (document for document in DOCUMENTS), return_documents=True)
    assert ranked == encoder.rank(QUERY, DOCUMENTS, return_documents=True)


@pytest.mark.parametrize("pair", [PAIRS[1], list(PAIRS[1]), np.array(PAIRS[1])], ids=["tuple", "list", "array"])
def test_a_single_pair_has_a_single_score(encoder: CrossEncoder, pair: Any) -> None:
    score = encoder.predict(pair)
    assert isinstance(score, np.float32)
    assert score == encoder.predict([PAIRS[1]])[0]


def test_no_pairs_have_no_scores(encoder: CrossEncoder) -> None:
    assert encoder.predict([]).shape == encoder.predict(()).shape == (0,)
    assert encoder.predict([], convert_to_numpy=False) == []
    assert encoder.predict([], convert_to_tensor=True).shape == (0,)
    assert encoder.rank(QUERY, []) == []
    assert encoder.rank_many([], []) == []
    assert encoder.rank_many([QUERY, "b"], [[], ["x"]])[0] == []


def test_tensors_are_returned_where_they_are_asked_for(encoder: CrossEncoder) -> None:
    expected = encoder.predict(PAIRS)
    tensor = encoder.predict(PAIRS, convert_to_tensor=True, convert_to_numpy=False)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    parts = encoder.predict(PAIRS, convert_to_numpy=False)
    assert [part.shape for part in parts] == [()] * 4
    assert torch.stack(parts).equal(tensor)
    assert encoder.predict(PAIRS[0], convert_to_tensor=True).shape == ()


def test_ranks_are_dictionaries_of_plain_numbers(encoder: CrossEncoder) -> None:
    results = encoder.rank(QUERY, DOCUMENTS)
    scores = encoder.predict(PAIRS)
    assert [result["corpus_id"] for result in results] == np.argsort(-scores).tolist()
    assert all(type(result["corpus_id"]) is int and type(result["score"]) is float for result in results)
    assert [result["score"] for result in results] == sorted(scores.tolist(), reverse=True)
    assert encoder.rank(QUERY, DOCUMENTS, top_k=2) == results[:2]
    assert encoder.rank(QUERY, DOCUMENTS, 99) == results
    assert encoder.rank(QUERY, DOCUMENTS, 0) == []
    texts = encoder.rank(QUERY, DOCUMENTS, return_documents=True)
    assert [list(result) for result in texts] == [["corpus_id", "score", "text"]] * 4
    assert [result["text"] for result in texts] == [DOCUMENTS[result["corpus_id"]] for result in results]


def test_equal_scores_stay_in_the_order_of_the_documents(encoder: CrossEncoder) -> None:
    results = encoder.rank(QUERY, ["same", "Goethe wrote Faust", "same", "same"])
    assert [result["corpus_id"] for result in results] == [1, 0, 2, 3]


def test_many_queries_are_ranked_as_each_alone(encoder: CrossEncoder) -> None:
    queries = [QUERY, "how many people live in Berlin", "cats"]
    documents = [DOCUMENTS, DOCUMENTS[::-1], DOCUMENTS[:1]]
    many = encoder.rank_many(iter(queries), documents, top_k=2, return_documents=True)
    alone = [
        encoder.rank(query, own, top_k=2, return_documents=True) for query, own in zip(queries, documents, strict=True)
    ]
    assert many == alone


def test_a_prompt_comes_before_the_query(encoder: CrossEncoder) -> None:
    expected = encoder.predict([("query: " + query, document) for query, document in PAIRS])
    np.testing.assert_array_equal(encoder.predict(PAIRS, prompt="query: "), expected)
    with CrossEncoder("builtin", precision="fp32", prompts={"q": "query: "}, default_prompt_name="q") as prompted:
        np.testing.assert_array_equal(prompted.predict(PAIRS), expected)
        assert prompted.rank(QUERY, DOCUMENTS) == encoder.rank("query: " + QUERY, DOCUMENTS)
        np.testing.assert_array_equal(prompted.predict(PAIRS, prompt=""), encoder.predict(PAIRS))
        np.testing.assert_array_equal(prompted.predict(PAIRS, prompt_name="q"), expected)
    with pytest.raises(ValueError, match="prompt_name 'x' is none of prompts"):
        encoder.predict(PAIRS, prompt_name="x")


# --- activations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("identity", lambda x: x),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)),
        ("softplus", lambda x: np.log1p(np.exp(x))),
        ("logsigmoid", lambda x: -np.log1p(np.exp(-x))),
        (torch.nn.Identity(), lambda x: x),
        (torch.nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        (torch.nn.GELU(), lambda x: torch.nn.functional.gelu(torch.from_numpy(x)).numpy()),
        (torch.nn.Softmax(dim=1), np.ones_like),
        (torch.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
        (lambda x: torch.sigmoid(x) * 2, lambda x: 2 / (1 + np.exp(-x))),
        (lambda x: x.sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        (lambda x: x * 2, lambda x: x * 2),
        (np.tanh, np.tanh),
        (lambda x: x.astype(np.float64)[:, 0], lambda x: x),
    ],
    # Given one by one: the text of a function holds its address, which differs between the processes of a test run.
    ids=[
        *("identity", "sigmoid", "tanh", "relu", "softplus", "logsigmoid"),
        *("Identity()", "Sigmoid()", "GELU()", "Softmax()", "torch.sigmoid"),
        *("function of tensors", "method of tensors", "function of both", "np.tanh", "float64, flat"),
    ],
)
def test_an_activation_is_a_name_a_module_or_a_function(
    encoder: CrossEncoder, logits: np.ndarray[Any, Any], activation: Any, expected: Any
) -> None:
    scores = encoder.predict(PAIRS, activation_fn=activation)
    assert (scores.dtype, scores.shape) == (np.float32, (4,))
    np.testing.assert_allclose(scores, expected(logits), atol=1e-6)
    results = encoder.rank(QUERY, DOCUMENTS, activation_fn=activation)
    assert [result["corpus_id"] for result in results] == np.argsort(-scores, kind="stable").tolist()


def test_the_encoders_own_activation_can_be_set(encoder: CrossEncoder, logits: np.ndarray[Any, Any]) -> None:
    assert encoder.activation_fn.name == "sigmoid"
    with CrossEncoder("builtin", precision="fp32", activation_fn=torch.nn.Identity()) as raw:
        np.testing.assert_array_equal(raw.predict(PAIRS), logits)
        raw.activation_fn = "tanh"
        np.testing.assert_allclose(raw.predict(PAIRS), np.tanh(logits), atol=1e-7)


@pytest.mark.parametrize(
    ("activation", "error", "message"),
    [
        ("cosine", ValueError, "activation_fn 'cosine' is not known: use one of identity, sigmoid"),
        (3, TypeError, "activation_fn must be a name or a function, not int"),
        (lambda x: x.mean(), ValueError, r"returned \[\] of float32 for \[4, 1\] logits"),
        (lambda x: ["a"] * 4, ValueError, "it must return one number for each"),
        (lambda x: 1 / 0, ZeroDivisionError, "division"),
    ],
    ids=["name", "number", "mean", "texts", "raises"],
)
def test_what_is_no_activation_is_refused(encoder: CrossEncoder, activation: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        encoder.predict(PAIRS, activation_fn=activation)


# --- long texts -------------------------------------------------------------------------------------------------


def test_truncation_is_told(encoder: CrossEncoder) -> None:
    long = "word " * 2000
    prediction = encoder.predict([(QUERY, "short"), (QUERY, long), (long, "short")], return_details=True)
    assert isinstance(prediction, Prediction)
    assert prediction.truncated.tolist() == [False, True, True]
    assert prediction.tokens.tolist() == [7, 512, 512]
    np.testing.assert_array_equal(
        prediction.scores, encoder.predict([(QUERY, "short"), (QUERY, long), (long, "short")])
    )
    single = encoder.predict((QUERY, long), return_details=True)
    assert (single.scores, bool(single.truncated), int(single.tokens)) == (prediction.scores[1], True, 512)
    details = {
        result["corpus_id"]: (result["truncated"], result["tokens"])
        for result in encoder.rank(QUERY, ["short", long], return_details=True)
    }
    assert details == {0: (False, 7), 1: (True, 512)}
    assert type(encoder.rank(QUERY, ["a"], return_details=True)[0]["truncated"]) is bool


def test_max_length_cuts_pairs(encoder: CrossEncoder) -> None:
    assert encoder.max_length == encoder.max_seq_length == 512
    pair = ("who", "one two three")
    with CrossEncoder("builtin", precision="fp32", max_length=6) as short:
        assert short.max_length == 6
        assert short.predict(pair, return_details=True).tokens == 6
        assert short.predict(pair) == encoder.predict(("who", "one two"))
        short.max_length = 512
        assert short.predict(pair) == encoder.predict(pair)


@pytest.mark.parametrize("length", [0, -1, 4, 513, 1 << 40])
def test_a_length_that_the_model_has_not_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length is {length}; crossrank-mini takes 5 to 512 tokens a pair"):
        CrossEncoder("builtin", precision="fp32", max_length=length)


def test_a_million_characters_are_no_trouble(encoder: CrossEncoder) -> None:
    # One word, which the vocabulary does not have, however long it is.
    assert encoder.predict((QUERY, "x" * 1_000_000)) == encoder.predict((QUERY, "x" * 1_000))
    assert encoder.predict((QUERY, "word " * 200_000)) == encoder.predict((QUERY, "word " * 600))


def test_more_pairs_than_are_tokenized_at_a_time(encoder: CrossEncoder) -> None:
    pairs = [(f"query {i % 7}", f"document number {i}") for i in range(2500)]
    scores = encoder.predict(pairs)
    chosen = [0, 1023, 1024, 1025, 2047, 2048, 2499]
    alone = [encoder.predict(pairs[i]) for i in chosen]
    np.testing.assert_allclose(scores[chosen], alone, atol=1e-6)


# --- refusals ---------------------------------------------------------------------------------------------------

BAD_INPUTS = [
    (None, "inputs is None: give a pair"),
    ("text", "inputs is the text 'text': give a pair"),
    (b"text", "inputs is of type bytes"),
    (3, "inputs is of type int"),
    ({"a", "b"}, "inputs is of type set"),
    ({"text": "a"}, "inputs is of type dict"),
    (["a"], r"inputs\[0\] is 1 values, not a pair"),
    (["a", "b", "c"], r"inputs\[0\] is 3 values, not a pair"),
    ([("a", "b"), "cd"], r"inputs\[1\] is the text 'cd', not a pair"),
    ([("a", "b"), ()], r"inputs\[1\] is 0 values"),
    ([("a", "b"), ("a",)], r"inputs\[1\] is 1 values"),
    ([("a", "b"), None], r"inputs\[1\] is None, not a pair"),
    ([("a", None)], r"the document of inputs\[0\] is None, not a text"),
    ([(None, "a")], r"the query of inputs\[0\] is None, not a text"),
    ([("a", 3)], r"the document of inputs\[0\] is of type int"),
    ([("a", float("nan"))], r"the document of inputs\[0\] is of type float"),
    ([("a", b"b")], r"the document of inputs\[0\] is of type bytes"),
    ([("a", ["b"])], r"the document of inputs\[0\] is of type list"),
    ([("a", {"text": "b"})], r"the document of inputs\[0\] is of type dict"),
    ([("a", "b\ud800c")], r"the document of inputs\[0\] holds the lone surrogate \\ud800 at character 1"),
    ([("\udfff", "b")], r"the query of inputs\[0\] holds the lone surrogate \\udfff at character 0"),
    (np.array([1.0, 2.0]), r"inputs\[0\] is of type float, not a pair"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS, ids=[str(i) for i in range(len(BAD_INPUTS))])
async def test_what_is_no_pair_of_texts_is_refused(encoder: CrossEncoder, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refused:
        encoder.predict(inputs)
    assert isinstance(refused.value, ValueError)
    with pytest.raises(InvalidInput, match=message):
        await encoder.apredict(inputs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((QUERY, "text"), InvalidInput, "documents is the text 'text': give a list of texts"),
        ((QUERY, None), TypeError, "documents is None: give a list of texts"),
        ((QUERY, {"a": 1}), InvalidInput, "documents is of type dict"),
        ((QUERY, ["a", None]), InvalidInput, r"documents\[1\] is None, not a text"),
        ((None, ["a"]), InvalidInput, "query is None, not a text"),
        (([QUERY], ["a"]), InvalidInput, "query is of type list, not a text"),
        ((QUERY, ["a"], -1), ValueError, "top_k is -1: give 0 or more, or None"),
        ((QUERY, ["a"], 1.5), TypeError, "float"),
        ((QUERY, ["\ud800"]), InvalidInput, r"documents\[0\] holds the lone surrogate"),
    ],
    ids=lambda value: None,
)
async def test_what_cannot_be_ranked_is_refused(
    encoder: CrossEncoder, arguments: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder.rank(*arguments)
    with pytest.raises(error, match=message):
        await encoder.arank(*arguments)


def test_queries_and_lists_of_documents_must_be_as_many(encoder: CrossEncoder) -> None:
    with pytest.raises(ValueError, match="there are 2 queries and 1 lists of documents"):
        encoder.rank_many(["a", "b"], [["x"]])
    with pytest.raises(InvalidInput, match=r"documents\[1\]\[0\] is None"):
        encoder.rank_many(["a", "b"], [["x"], [None]])  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="queries is the text 'ab'"):
        encoder.rank_many("ab", [["x"], ["y"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"pool": {}}, "pool is not supported: one CrossEncoder uses all cores"),
        ({"device": "cuda"}, "device cuda is not that of this encoder, cpu"),
        ({"device": ["cpu", "cpu"]}, "device .* is not that of this encoder"),
    ],
    ids=str,
)
def test_an_option_without_a_meaning_here_is_refused_by_name(
    encoder: CrossEncoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.predict(PAIRS, **options)
    with pytest.raises(ValueError, match=message):
        encoder.rank(QUERY, DOCUMENTS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3}, "num_labels 3 is not supported, .* with label"),
        ({"trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"modules": [1]}, "modules is not supported: save the model"),
        ({"model_kwargs": {"torch_dtype": "bfloat16"}}, r"model_kwargs\['torch_dtype'\] .*: use precision='bf16'"),
        ({"processor_kwargs": {"model_max_length": 3}}, r"processor_kwargs\['model_max_length'\] .*: use max_length"),
        ({"config_kwargs": {"x": 3}}, r"config_kwargs\['x'\] is not supported: write the option"),
        ({"keep_in_fp32_modules": ["a"]}, "keep_in_fp32_modules is not supported"),
        ({"backend": "tf"}, "Unsupported backend 'tf'"),
        ({"device": "mps"}, "device 'mps' is not supported: use 'cpu' or 'cuda'"),
        ({"device": "cuda:3"}, "device 'cuda:3' is not supported"),
        ({"device": "cuda", "engine": "native"}, "contradict each other"),
        ({"device": "cpu", "engine": "cuda"}, "contradict each other"),
        ({"device": "cpu", "engine": "tensorrt"}, "contradict each other"),
        ({"threads": 0}, "threads is 0: give 1 or more"),
        ({"engine": "triton"}, "engine 'triton' is not known"),
        ({"engine": "torch"}, "engine 'torch' is not known: use one of auto, native"),
        ({"precision": "fp8"}, "precision 'fp8' is not known: use one of auto, fp32"),
        ({"activation_fn": "x"}, "activation_fn 'x' is not known"),
    ],
    ids=str,
)
def test_what_does_not_exist_here_is_refused_by_name_when_opening(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEncoder("builtin", **options)


def test_options_without_effect_are_accepted() -> None:
    options: dict[str, Any] = {"attn_implementation": "eager", "low_cpu_mem_usage": True}
    with CrossEncoder(
        "builtin",
        num_labels=1,
        backend="torch",
        device=torch.device("cpu"),
        model_kwargs=options,
        token=True,
        config_kwargs={},
        processor_kwargs=None,
        local_files_only=True,
    ) as encoder:
        scores = encoder.predict(PAIRS, batch_size=1, chunk_size=3, apply_softmax=True, device="cpu")
        np.testing.assert_array_equal(scores, encoder.predict(PAIRS, 64))


def test_earlier_names_are_accepted_with_a_warning(encoder: CrossEncoder) -> None:
    old: Any = encoder
    with pytest.warns(DeprecationWarning, match="sentences is the earlier name of inputs"):
        np.testing.assert_array_equal(old.predict(sentences=PAIRS), encoder.predict(PAIRS))
    with pytest.warns(DeprecationWarning, match="activation_fct is the earlier name of activation_fn"):
        np.testing.assert_array_equal(
            old.predict(PAIRS, activation_fct=torch.nn.Identity()), encoder.predict(PAIRS, activation_fn="identity")
        )
    with pytest.warns(DeprecationWarning, match="num_workers has no effect"):
        assert old.rank(QUERY, DOCUMENTS, num_workers=2) == encoder.rank(QUERY, DOCUMENTS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        old.predict(PAIRS, nonsense=1)


def test_training_is_refused_with_the_remedy(encoder: CrossEncoder) -> None:
    assert not hasattr(encoder, "fit")
    with pytest.raises(AttributeError, match="CrossEncoder has no fit: this library does not train: train and save"):
        encoder.fit  # noqa: B018
    with pytest.raises(AttributeError, match=r"CrossEncoder has no tokenize$"):
        encoder.tokenize  # noqa: B018


def test_a_model_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match="does not exist"):
        CrossEncoder(tmp_path / "nothing")
    with pytest.raises(CrossrankError):
        CrossEncoder("someone/never-downloaded", local_files_only=True, cache_folder=tmp_path)


@pytest.mark.parametrize(("backend", "engine"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_back_ends_are_engines(encoder: CrossEncoder, backend: str, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    with CrossEncoder("builtin", backend=backend, precision="fp32", threads=1) as other:
        assert (other.engine, other.precision, other.device) == (engine, "fp32", "cpu")
        np.testing.assert_allclose(other.predict(PAIRS), encoder.predict(PAIRS), atol=1e-5)


def test_facts_of_the_model(encoder: CrossEncoder) -> None:
    assert (encoder.model_id, encoder.num_labels, encoder.precision) == ("crossrank-mini", 1, "fp32")
    config = encoder.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("bert", 128, 2)
    assert (config.num_labels, config.vocab_size, config.pad_token_id) == (1, 30522, 0)
    assert repr(encoder) == "CrossEncoder('builtin')"


def test_everything_public_has_types_that_resolve() -> None:
    assert crossrank.CrossEncoder is CrossEncoder
    assert crossrank.Prediction is Prediction
    for name, member in vars(CrossEncoder).items():
        if not name.startswith("_") or name in ("__init__", "__enter__"):
            function = member.fget if isinstance(member, property) else member
            assert "return" in typing.get_type_hints(function), name


def test_progress_is_shown_where_it_is_asked_for(encoder: CrossEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    np.testing.assert_array_equal(encoder.predict(PAIRS, show_progress_bar=True), encoder.predict(PAIRS))
    assert "4/4" in capsys.readouterr().err
    encoder.predict(PAIRS, show_progress_bar=False)
    encoder.predict(PAIRS)
    assert capsys.readouterr() == ("", "")


TEXTS = st.text(max_size=60)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.randoms())
def test_scores_follow_their_pairs(encoder: CrossEncoder, pairs: list[tuple[str, str]], random: Any) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    scores = encoder.predict(pairs)
    np.testing.assert_array_equal(encoder.predict([pairs[i] for i in order]), scores[order])
