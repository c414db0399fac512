"""CrossEncoder beside sentence-transformers' own, in its environment, on the same weights: `make reference` prepares it.

Every call is one expression, evaluated with either encoder; values must agree in type, shape and dtype, and in fp32 to
1e-4. A difference that is meant is in `MEANT`, with its reason.
"""

from __future__ import annotations

import importlib
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.checkpoints.tokenizer_classes import WITH_TYPES_OF_5
from tests import odd_texts
from tests.checkpoints import write_checkpoint, write_family
from tests.clients.environment import ClientProgram, Refused
from tests.conftest import SHARED, Topic

PROGRAMS = Path(__file__).parent / "programs"
TOLERANCE = 1e-4
# Scores nearer to each other than this are in an order that rounding decides.
TIE = 1e-5

MODELS = ("crossrank-mini", "TinyBERT-L2", "roberta", "distilbert")


class Both:
    """Our encoder and the other one, on one model."""

    def __init__(self, reference: ClientProgram, model: Path, **options: Any) -> None:
        self._reference = reference
        self._own = importlib.import_module("encoder")
        common = {"local_files_only": True, "device": "cpu", **options}
        self._their_key = reference.ask("load", library="sentence_transformers", model=str(model), options=common)
        self._own_key = self._own.load("crossrank", str(model), {**common, "precision": "fp32"})

    def theirs(self, expression: str, **texts: Any) -> Any:
        return self._reference.ask("call", encoder=self._their_key, expression=expression, texts=texts)

    def own(self, expression: str, **texts: Any) -> Any:
        return self._own.call(self._own_key, expression, texts)

    def agree(self, expression: str, **texts: Any) -> None:
        compare(self.own(expression, **texts), self.theirs(expression, **texts), expression)


def compare(own: Any, theirs: Any, where: str) -> None:
    assert own.keys() == theirs.keys(), where
    if "list" in own:
        assert len(own["list"]) == len(theirs["list"]), where
        if own["list"] and "dict" in own["list"][0]:
            compare_rankings(own["list"], theirs["list"], where)
            return
        for i, (ours, other) in enumerate(zip(own["list"], theirs["list"], strict=True)):
            compare(ours, other, f"{where}[{i}]")
    elif "values" in own:
        assert {**own, "values": 0} == {**theirs, "values": 0}, where
        for i, (ours, other) in enumerate(zip(own["values"], theirs["values"], strict=True)):
            assert math.isclose(ours, other, rel_tol=0, abs_tol=TOLERANCE), f"{where}[{i}]: {ours}, not {other}"
    else:
        assert own == theirs, where


def compare_rankings(own: list[Any], theirs: list[Any], where: str) -> None:
    """Compare the results of `rank`: the keys and their order, all types, the texts, scores and the order of documents."""
    rows = [[dict(result["dict"]) for result in results] for results in (own, theirs)]
    assert [[key for key, _ in result["dict"]] for result in own] == [
        [key for key, _ in result["dict"]] for result in theirs
    ], where
    # A tie at the end of the best k may bring in another document.
    scores = {row["corpus_id"]["value"]: row["score"]["value"] for row in rows[1]}
    for place, (ours, other) in enumerate(zip(*rows, strict=True)):
        at = f"{where}, place {place}"
        assert {name: value["plain"] for name, value in ours.items()} == {
            name: value["plain"] for name, value in other.items()
        }, at
        assert math.isclose(ours["score"]["value"], other["score"]["value"], rel_tol=0, abs_tol=TOLERANCE), at
        if ours["corpus_id"] == other["corpus_id"]:
            assert ours.get("text") == other.get("text"), at
        else:
            expected = scores.get(ours["corpus_id"]["value"], ours["score"]["value"])
            assert abs(expected - other["score"]["value"]) < TIE, f"{at}: {ours} before {other}"


@pytest.fixture(scope="module")
def reference() -> Iterator[ClientProgram]:
    with pytest.MonkeyPatch.context() as patch, ClientProgram("reference", "encoder", [PROGRAMS]) as program:
        patch.syspath_prepend(PROGRAMS)
        yield program
        sys.modules.pop("encoder", None)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories as `save_pretrained` writes them; the first one is not in the repository."""
    root = tmp_path_factory.mktemp("models")
    for name in ("TinyBERT-L2", "roberta", "distilbert"):
        (root / name).mkdir()
    write_checkpoint(root / "TinyBERT-L2", "TinyBERT-L2")
    # Of the class that it has there, transformers 5 gives no segments, unlike 4; of BERT's own, both do.
    config = root / "TinyBERT-L2" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("PreTrainedTokenizerFast", "BertTokenizer"))
    write_family(root / "roberta", "roberta")
    write_family(root / "distilbert", "distilbert")
    return {"crossrank-mini": SHARED / "models" / "crossrank-mini", **{path.name: path for path in root.iterdir()}}


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, reference: ClientProgram, directories: dict[str, Path]) -> Both:
    path = directories[request.param]
    if not path.is_dir():
        pytest.skip(f"{request.param} is not beside the project at {SHARED}")
    return Both(reference, path)


@pytest.fixture(scope="module")
def bert(reference: ClientProgram, directories: dict[str, Path]) -> Both:
    return Both(reference, directories["TinyBERT-L2"])


QUERY = "How many people live in Berlin?"
DOCUMENTS = [
    "Berlin had a population of 3,520,031 registered inhabitants.",
    "Berlin is well known for its museums.",
    "",
    "word " * 150,
    odd_texts.LANGUAGES[1],
    odd_texts.LANGUAGES[2],
    odd_texts.ODD[0],
    "Berlin is well known for its museums.",
]
PAIRS = [[QUERY, document] for document in DOCUMENTS]
CALLS = [
    "encoder.predict(pairs)",
    "encoder.predict([tuple(pair) for pair in pairs])",
    "encoder.predict(tuple(map(tuple, pairs)))",
    "encoder.predict(np.array(pairs))",
    "encoder.predict(np.array(pairs, dtype=object))",
    "encoder.predict(pairs[0])",
    "encoder.predict(tuple(pairs[0]))",
    "encoder.predict(np.array(pairs[0]))",
    "encoder.predict(pairs[:1])",
    "encoder.predict([])",
    "encoder.predict(())",
    "encoder.predict(np.array([], dtype=object))",
    "encoder.predict([(np.str_('q'), np.str_('d'))])",
    "encoder.predict([('', ''), ('', 'a'), ('a', '')])",
    "encoder.predict((['q', 'q2'], ['a', 'b']))",
    "encoder.predict(pairs, convert_to_tensor=True)",
    "encoder.predict(pairs, convert_to_tensor=True, convert_to_numpy=False)",
    "encoder.predict(pairs, convert_to_numpy=False)",
    "encoder.predict(pairs[0], convert_to_tensor=True)",
    "encoder.predict(pairs[0], convert_to_numpy=False)",
    "encoder.predict([], convert_to_tensor=True)",
    "encoder.predict([], convert_to_numpy=False)",
    "encoder.predict(pairs, batch_size=1)",
    "encoder.predict(pairs, batch_size=7, show_progress_bar=False)",
    "encoder.predict(pairs, apply_softmax=True)",
    "encoder.predict(pairs, activation_fn=torch.nn.Identity())",
    "encoder.predict(pairs, activation_fn=torch.nn.Sigmoid())",
    "encoder.predict(pairs, activation_fn=torch.nn.Softplus(beta=2.0))",
    "encoder.predict(pairs, activation_fn=torch.nn.Softmax(dim=1))",
    "encoder.predict(pairs, activation_fn=torch.tanh)",
    "encoder.predict(pairs, activation_fn=lambda logits: logits.sigmoid() * 3)",
    "encoder.predict(pairs, activation_fn=lambda logits: logits * 2 - 1)",
    "encoder.predict(pairs, activation_fn=lambda logits: logits.double(), convert_to_tensor=True)",
    "encoder.predict(pairs, activation_fn=lambda logits: logits.double())",
    "encoder.predict(pairs, prompt='query: ')",
    "encoder.predict(pairs, None, 'query: ', 16, False, torch.nn.Identity())",
    "encoder.predict(pairs, device='cpu', chunk_size=2)",
    "encoder.predict(sentences=pairs)",
    "encoder.predict(pairs, activation_fct=torch.nn.Identity(), num_workers=0)",
    "encoder.rank(query, documents)",
    "encoder.rank(query, documents, return_documents=True)",
    "encoder.rank(query, documents, top_k=3)",
    "encoder.rank(query, documents, 3, True)",
    "encoder.rank(query, documents, top_k=0)",
    "encoder.rank(query, documents, top_k=1000)",
    "encoder.rank(query, documents, top_k=np.int64(2))",
    "encoder.rank(query, tuple(documents), return_documents=True)",
    "encoder.rank(query, np.array(documents))",
    "encoder.rank(query, (document for document in documents))",
    "encoder.rank(query, [])",
    "encoder.rank(query, documents, activation_fn=torch.nn.Identity(), batch_size=5)",
    "encoder.rank(query, documents, activation_fn=lambda logits: logits * 0)",
    "encoder.rank(query, documents, prompt='query: ', show_progress_bar=False)",
    "encoder.rank(query, documents, apply_softmax=True, convert_to_tensor=True, num_workers=1)",
    "encoder.num_labels",
    "encoder.max_seq_length",
    "encoder.max_length",
    "encoder.config.hidden_size if hasattr(encoder.config, 'hidden_size') else encoder.config.dim",
    "encoder.config.model_type",
    "hasattr(encoder, 'predict')",
]


@pytest.mark.parametrize("expression", CALLS)
def test_a_call_gives_what_it_gives_there(bert: Both, expression: str) -> None:
    bert.agree(expression, pairs=PAIRS, query=QUERY, documents=DOCUMENTS)


def test_models_of_several_families_give_the_same_scores_and_orders(both: Both) -> None:
    documents = [*DOCUMENTS, *odd_texts.LANGUAGES, *odd_texts.ODD, "word " * 700]
    both.agree("encoder.rank(query, documents, return_documents=True)", query=QUERY, documents=documents)
    both.agree("encoder.predict(pairs, activation_fn=torch.nn.Identity())", pairs=[[QUERY, text] for text in documents])


def test_what_it_saves_itself_scores_the_same(
    reference: ClientProgram, directories: dict[str, Path], tmp_path: Path
) -> None:
    # A tokenizer of no family's own class: version 5 of transformers, which saves it here, feeds it no segments.
    generic = shutil.copytree(directories["TinyBERT-L2"], tmp_path / "generic")
    settings = generic / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("BertTokenizer", "PreTrainedTokenizerFast"))
    for directory in (generic, *(directories[name] for name in MODELS[1:])):
        saved = tmp_path / "saved" / directory.name
        key = reference.ask("load", library="sentence_transformers", model=str(directory), options={"device": "cpu"})
        reference.ask("call", encoder=key, expression="encoder.save_pretrained(path)", texts={"path": str(saved)})
        Both(reference, saved).agree("encoder.predict(pairs)", pairs=[[QUERY, text] for text in DOCUMENTS])


def test_classes_that_feed_segments_are_those_of_its_transformers(bert: Both) -> None:
    package = "__import__('transformers')"
    names = f"{package}.models.auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.values()"
    kinds = f"[getattr({package}, name) for name in set({names}) if name]"
    # A class whose library is not installed there is a DummyObject.
    fed = "type(kind).__name__ != 'DummyObject' and 'token_type_ids' in getattr(kind, 'model_input_names', ())"
    listed = bert.theirs(f"sorted({{kind.__name__ for kind in {kinds} if {fed}}})")["list"]
    assert listed
    assert {each["value"].removesuffix("Fast") for each in listed} <= WITH_TYPES_OF_5


@pytest.mark.parametrize("count", [0, 1, 2, 33, 1000])
def test_any_number_of_documents_is_ranked_the_same(bert: Both, count: int) -> None:
    documents = [f"w{i} {'w9 w8 ' * (i % 4)}w{i * i % 97}" for i in range(count)]
    bert.agree("encoder.rank('w1 w2', documents)", documents=documents)


def test_passages_of_trec_are_ranked_the_same(
    reference: ClientProgram, directories: dict[str, Path], dl19: list[Topic]
) -> None:
    mini = Both(reference, directories["crossrank-mini"])
    for topic in dl19[::20]:
        mini.agree("encoder.rank(query, documents)", query=topic.query, documents=topic.passages)
        mini.agree("encoder.rank(query, documents, top_k=10)", query=topic.query, documents=topic.passages[:50])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=60)), max_size=5))
def test_any_texts_have_the_same_scores(bert: Both, pairs: list[tuple[str, str]]) -> None:
    bert.agree("encoder.predict([tuple(pair) for pair in pairs])", pairs=pairs)


@pytest.mark.parametrize(
    ("options", "expression"),
    [
        ({"max_length": 16}, "encoder.predict(pairs)"),
        ({"max_length": 16}, "encoder.max_seq_length"),
        ({"num_labels": 1}, "encoder.predict(pairs)"),
        ({"prompts": {"q": "query: "}, "default_prompt_name": "q"}, "encoder.predict(pairs)"),
        ({"prompts": {"q": "query: "}}, "encoder.rank(pairs[0][0], [d for _, d in pairs], prompt_name='q')"),
        ({"model_kwargs": {"attn_implementation": "eager"}}, "encoder.predict(pairs)"),
    ],
    ids=str,
)
def test_what_is_asked_for_when_opening_holds(
    reference: ClientProgram, directories: dict[str, Path], options: dict[str, Any], expression: str
) -> None:
    Both(reference, directories["TinyBERT-L2"], **options).agree(expression, pairs=PAIRS)


REFUSED = [
    "encoder.predict(None)",
    "encoder.predict({'a', 'b'})",
    "encoder.predict(['a'])",
    "encoder.predict(['a', 'b', 'c'])",
    "encoder.predict([('a', 'b', 'c')])",
    "encoder.predict([('a',)])",
    "encoder.predict([()])",
    "encoder.predict([('a', 'b'), ('a', None)])",
    "encoder.predict([('a', 3)])",
    "encoder.predict([('a', float('nan'))])",
    "encoder.predict([('a', b'b')])",
    "encoder.predict([({'text': 'a'}, {'text': 'b'})])",
    "encoder.predict([('a', {'title': 'b'})])",
    "encoder.predict(pairs, batch_size=0)",
    "encoder.predict(pairs, batch_size='a')",
    "encoder.predict(pairs, prompt_name='nothing')",
    "encoder.rank(None, ['a'])",
    "encoder.rank(['a'], ['a'])",
    "encoder.rank('a', None)",
    "encoder.rank('a', ['b', None])",
    "encoder.rank('a', ['b'], top_k=1.5)",
]


@pytest.mark.parametrize("expression", REFUSED)
def test_what_is_refused_there_is_refused_here_by_an_error_of_the_same_kind(bert: Both, expression: str) -> None:
    with pytest.raises(Refused) as theirs:
        bert.theirs(expression, pairs=PAIRS)
    with pytest.raises((ValueError, TypeError)) as own:
        bert.own(expression, pairs=PAIRS)
    (kind,) = {ValueError, TypeError} & set(type(own.value).__mro__)
    assert f"builtins.{kind.__name__}" in theirs.value.classes


# (call, what it gives there, what it gives here)
MEANT = {
    "a lone surrogate is a ValueError, as in Python itself": (
        "encoder.predict([('a', 'b' + chr(0xd800))])",
        "TypeError",
        "ValueError",
    ),
    "pairs may come from an iterator, as documents may": ("encoder.predict(iter(pairs))", "ValueError", None),
    "a text alone is no pair: its score says nothing": ("encoder.predict('a')", None, "ValueError"),
    "a text among pairs is no pair": ("encoder.predict([('a', 'b'), 'c'])", None, "ValueError"),
    "the letters of a text are no documents": ("encoder.rank('a', 'bcd')", None, "ValueError"),
    "all but the last of the best is nothing that one asks for": (
        "encoder.rank('a', ['b', 'c'], top_k=-1)",
        None,
        "ValueError",
    ),
    "documents of an iterator can be returned": (
        "encoder.rank('a', iter(['b', 'c']), return_documents=True)",
        "TypeError",
        None,
    ),
    "activations have names": ("encoder.predict(pairs, activation_fn='sigmoid')", "TypeError", None),
    "an option that does not exist is a mistake": ("encoder.predict(pairs, batchsize=3)", None, "TypeError"),
}


@pytest.mark.parametrize("reason", MEANT)
def test_differences_are_those_that_are_meant(bert: Both, reason: str) -> None:
    expression, theirs, own = MEANT[reason]
    if theirs is None:
        bert.theirs(expression, pairs=PAIRS)
    else:
        with pytest.raises(Refused) as refused:
            bert.theirs(expression, pairs=PAIRS)
        assert f"builtins.{theirs}" in refused.value.classes
    if own is None:
        bert.own(expression, pairs=PAIRS)
    else:
        with pytest.raises((ValueError, TypeError)) as raised:
            bert.own(expression, pairs=PAIRS)
        assert own in [kind.__name__ for kind in type(raised.value).__mro__]
