"""The real tritonserver: its scores are the embedded engine's, and it merges the requests of different clients."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from crossrank.bundles.bundle import Bundle
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.select import make_engine
from crossrank.engines.triton.buckets import split_by_bucket
from crossrank.native.padding import pad
from crossrank.packed import take_pairs
from crossrank.text.encoding import PairEncoder
from crossrank_export.triton.spec import Queue, make_spec
from crossrank_export.triton.write import write_repository
from tests.triton_process import CROSSRANK, RunningTriton, environment, free_ports, running_triton
from tests.unit.export.test_repository import gpu_bundle  # noqa: F401 - a fixture

pytestmark = pytest.mark.triton

ENGINE = "crossrank-mini"
TEXT = "crossrank-mini_rerank"
BUCKETS = fit_lengths(BUCKET_LENGTHS, 512)
Requests = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningTriton]:
    with running_triton("--precision", "fp32", "--instances", "2") as running:
        yield running


@pytest.fixture
async def client(server: RunningTriton) -> AsyncIterator[grpc_aio.InferenceServerClient]:
    async with grpc_aio.InferenceServerClient(server.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def encoder(builtin: Bundle) -> PairEncoder:
    return PairEncoder(builtin)


@pytest.fixture(scope="module")
def embedded(builtin: Bundle) -> EmbeddedEngine:
    return make_engine(builtin, "auto", "fp32", threads=1)


@pytest.fixture(scope="module")
def requests() -> Requests:
    """Queries with 10 documents each, of all lengths up to beyond the window."""
    chooser = random.Random(7)
    words = [
        "the",
        "of",
        "berlin",
        "people",
        "river",
        "bank",
        "passage",
        "ranking",
        "über",
        "café",
        "東京",
        "naïve",
        "3.5",
        "million",
        "2019",
        "engine",
    ]

    def text(most: int) -> str:
        return " ".join(chooser.choices(words, k=chooser.randint(1, most)))

    return [
        (text(12), [text(chooser.choice([10, 20, 20, 40, 40, 80, 120, 700])) for _ in range(10)]) for _ in range(48)
    ]


def tensor(name: str, array: NDArray[Any], datatype: str = "INT32") -> grpc.InferInput:
    value = grpc.InferInput(name, list(array.shape), datatype)
    value.set_data_from_numpy(array)
    return value


def strings(name: str, texts: list[str] | list[bytes]) -> grpc.InferInput:
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return tensor(name, np.array(encoded, np.object_), "BYTES")


def padded_inputs(ids: NDArray[Any], types: NDArray[Any], mask: NDArray[Any]) -> list[grpc.InferInput]:
    return [tensor("input_ids", ids), tensor("token_type_ids", types), tensor("attention_mask", mask)]


async def score_ids(client: grpc_aio.InferenceServerClient, encoder: PairEncoder, query: str, documents: list[str]):
    """What a client of any target may do: one inference a bucket, all at once."""
    batch = encoder.encode(query, documents).batch
    logits = np.empty(len(batch), np.float32)
    parts = split_by_bucket(batch.lengths, BUCKETS, 128)

    async def infer(rows: NDArray[np.int64], length: int) -> None:
        answer = await client.infer(ENGINE, padded_inputs(*pad(take_pairs(batch, rows), length, 0)))
        logits[rows] = answer.as_numpy("logits")[:, 0]

    await asyncio.gather(*(infer(part.rows, part.length) for part in parts))
    return logits, len(parts)


def embedded_logits(engine: EmbeddedEngine, encoder: PairEncoder, query: str, documents: list[str]):
    batch = encoder.encode(query, documents).batch
    logits = np.empty(len(batch), np.float32)
    for part in split_by_bucket(batch.lengths, BUCKETS, 32):
        logits[part.rows] = engine.infer(take_pairs(batch, part.rows))
    return logits


async def score_text(client: grpc_aio.InferenceServerClient, query: str, documents: list[str], **parameters: str):
    inputs = [strings("QUERY", [query]), strings("DOCUMENTS", documents)]
    answer = await client.infer(TEXT, inputs, parameters=parameters or None)
    return answer.as_numpy("SCORES")


async def at_concurrency(workers: int, jobs: list[Any]) -> list[Any]:
    """Await all jobs, at most `workers` at a time; results in order."""
    gate = asyncio.Semaphore(workers)

    async def run(job: Any) -> Any:
        async with gate:
            return await job

    return list(await asyncio.gather(*(run(job) for job in jobs)))


async def statistics(client: grpc_aio.InferenceServerClient, model: str = ENGINE) -> dict[str, int]:
    answer = await client.get_inference_statistics(model, as_json=True)
    (model_stats,) = answer["model_stats"]
    return {
        "executions": int(model_stats.get("execution_count", 0)),
        "rows": int(model_stats.get("inference_count", 0)),
        "requests": int(model_stats["inference_stats"]["success"].get("count", 0)),
    }


async def settled_statistics(client: grpc_aio.InferenceServerClient, rows: int) -> dict[str, int]:
    """Return the statistics once they count that many rows: Triton counts a batch after it has answered."""
    for _ in range(100):
        found = await statistics(client)
        if found["rows"] >= rows:
            break
        await asyncio.sleep(0.05)
    return found


async def test_the_engine_model_gives_the_embedded_engines_logits(client, encoder, embedded, requests):
    answers = await at_concurrency(8, [score_ids(client, encoder, *request) for request in requests])
    for request, (logits, _) in zip(requests, answers, strict=True):
        np.testing.assert_allclose(logits, embedded_logits(embedded, encoder, *request), atol=1e-5, rtol=0)


async def test_the_text_model_gives_the_embedded_engines_logits(client, encoder, embedded, requests):
    answers = await at_concurrency(8, [score_text(client, *request) for request in requests])
    for request, scores in zip(requests, answers, strict=True):
        np.testing.assert_allclose(scores, embedded_logits(embedded, encoder, *request), atol=1e-5, rtol=0)


async def test_both_models_agree_with_the_embedded_engine_on_dl19(client, encoder, embedded, dl19):
    topics = [(topic.query, topic.passages) for topic in dl19]
    texts = await at_concurrency(8, [score_text(client, *topic) for topic in topics])
    ids = await at_concurrency(8, [score_ids(client, encoder, *topic) for topic in topics])
    worst = 0.0
    for topic, scores, (logits, _) in zip(topics, texts, ids, strict=True):
        expected = embedded_logits(embedded, encoder, *topic)
        worst = max(worst, np.abs(scores - expected).max(), np.abs(logits - expected).max())
    assert worst <= 1e-5


async def test_permuting_documents_permutes_scores(client, requests):
    query, documents = requests[0]
    order = random.Random(1).sample(range(len(documents)), len(documents))
    scores = await score_text(client, query, documents)
    permuted = await score_text(client, query, [documents[i] for i in order])
    np.testing.assert_allclose(permuted, scores[order], atol=1e-5, rtol=0)


async def test_requests_of_different_clients_are_merged_and_each_row_is_inferred_once(
    server, encoder, embedded, requests
):
    clients = [grpc_aio.InferenceServerClient(server.grpc_url) for _ in range(16)]
    before = await statistics(clients[0])
    jobs = [score_ids(clients[i % 16], encoder, *request) for i, request in enumerate(requests)]
    answers = await at_concurrency(16, jobs)
    expected_rows = sum(len(documents) for _, documents in requests)
    after = await settled_statistics(clients[0], before["rows"] + expected_rows)
    for connected in clients:
        await connected.close()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["rows"] == expected_rows
    assert grown["requests"] == sum(sent for _, sent in answers)
    assert grown["executions"] <= grown["requests"] / 2
    for request, (logits, _) in zip(requests, answers, strict=True):
        np.testing.assert_allclose(logits, embedded_logits(embedded, encoder, *request), atol=1e-5, rtol=0)


async def test_scores_are_sigmoids_where_the_request_asks_for_them(client, requests):
    query, documents = requests[1]
    logits = await score_text(client, query, documents, activation="identity")
    scores = await score_text(client, query, documents, activation="sigmoid")
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-5)


async def test_an_unknown_activation_is_refused_naming_the_known_ones(client):
    with pytest.raises(InferenceServerException, match="activation is 'tanh': use one of identity, sigmoid") as caught:
        await score_text(client, "q", ["d"], activation="tanh")
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_no_documents_give_no_scores(client):
    assert (await score_text(client, "q", [])).shape == (0,)


async def test_text_that_is_not_utf8_is_refused(client):
    inputs = [strings("QUERY", ["q"]), strings("DOCUMENTS", [b"\xff\xfe"])]
    with pytest.raises(InferenceServerException, match="must be UTF-8"):
        await client.infer(TEXT, inputs)


async def test_a_request_at_fault_does_not_fail_those_merged_with_it(client, encoder, embedded, requests):
    ids, types, mask = (np.ones((1, 32), np.int32) for _ in range(3))
    ids[0, 3] = 30522

    async def send_wrong() -> str:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer(ENGINE, padded_inputs(ids, types, mask))
        return f"{caught.value.status()} {caught.value.message()}"

    good = [score_ids(client, encoder, *request) for request in requests[:8]]
    results = await asyncio.gather(*good, *(send_wrong() for _ in range(8)))
    for request, (logits, _) in zip(requests, results[:8], strict=False):
        np.testing.assert_allclose(logits, embedded_logits(embedded, encoder, *request), atol=1e-5, rtol=0)
    for message in results[8:]:
        assert "INVALID_ARGUMENT" in message
        assert "input_ids must be 0 to 30521, not 1 to 30522" in message


async def test_metadata_and_configuration_tell_a_client_what_it_must_send(client, builtin):
    metadata = await client.get_model_metadata(ENGINE, as_json=True)
    assert {entry["name"]: (entry["datatype"], entry["shape"]) for entry in metadata["inputs"]} == {
        name: ("INT32", ["-1", "-1"]) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "1"]}]
    config = (await client.get_model_config(ENGINE, as_json=True))["config"]
    facts = {name: value["string_value"] for name, value in config["parameters"].items()}
    assert config["max_batch_size"] == 128
    assert facts["crossrank_model_id"] == builtin.manifest.model_id
    assert facts["crossrank_tokenizer_sha256"] == builtin.manifest.files["tokenizer.json"]
    assert facts["crossrank_buckets"] == ",".join(map(str, BUCKETS))
    assert facts["crossrank_max_length"] == "512"
    assert facts["crossrank_mixed_rows"] == "32"


def test_a_taken_port_is_named_before_anything_is_loaded(server):
    ports = dict(zip(("--http-port", "--metrics-port"), free_ports(2), strict=True))
    taken = server.grpc_url.rpartition(":")[2]
    flags = [str(word) for pair in ports.items() for word in pair]
    ran = subprocess.run(
        [CROSSRANK, "triton", "--grpc-port", taken, *flags], capture_output=True, text=True, env=environment()
    )
    assert ran.returncode == 1
    assert ran.stderr == (
        f"error: --grpc-port {taken} on 127.0.0.1 cannot be used (Address already in use): choose another\n"
    )


@pytest.fixture(scope="module")
def controlled(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A server whose models are loaded on request, and that SIGTERM must end cleanly."""
    out = tmp_path_factory.mktemp("controlled") / "repository"
    write_repository(builtin, make_spec(builtin.manifest, "cpu", precision="fp32"), out)
    explicit = ["--", "--model-control-mode=explicit", f"--load-model={ENGINE}", f"--load-model={TEXT}"]
    with running_triton(*explicit, repository=out) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0


def test_the_command_becomes_the_tritonserver(controlled):
    assert os.readlink(f"/proc/{controlled.pid}/exe").endswith("tritonserver")


def test_gpu_models_fail_for_want_of_their_backends_alone(controlled, gpu_bundle):  # noqa: F811 - the imported fixture
    for target, backend in (("tensorrt", "tensorrt"), ("onnxruntime-gpu", "onnxruntime")):
        spec = make_spec(gpu_bundle.manifest, target, name=target, text_instances=0)
        write_repository(gpu_bundle, spec, controlled.repository)
        with pytest.raises(HTTPError) as caught:
            load_model(controlled, target)
        with caught.value as answer:
            assert f"unable to find backend library for backend '{backend}'" in answer.read().decode()


async def test_a_full_queue_refuses_at_once_and_the_text_model_passes_that_on(controlled, builtin, requests):
    spec = make_spec(builtin.manifest, "cpu", name="short-queue", queue=Queue(max_requests=1), instances=1)
    write_repository(builtin, spec, controlled.repository)
    for model in (spec.name, spec.text_name):
        load_model(controlled, model)
    many = [document for _, documents in requests for document in documents]
    async with grpc_aio.InferenceServerClient(controlled.grpc_url) as client:
        inputs = [strings("QUERY", ["q"]), strings("DOCUMENTS", many)]
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as caught:
            await client.infer(spec.text_name, inputs)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert await scores_once_there_is_room(client, spec.text_name, many[:10]) == 10


async def scores_once_there_is_room(client: grpc_aio.InferenceServerClient, model: str, documents: list[str]) -> int:
    """Return the number of scores; the rest of a refused request may still be under way."""
    for _ in range(200):
        try:
            answer = await client.infer(model, [strings("QUERY", ["q"]), strings("DOCUMENTS", documents)])
        except InferenceServerException as error:
            if error.status() != "StatusCode.UNAVAILABLE":
                raise
            await asyncio.sleep(0.05)
        else:
            return len(answer.as_numpy("SCORES"))
    return 0


async def test_a_new_version_takes_over_under_load_without_losing_a_request(controlled, builtin, requests):
    async with grpc_aio.InferenceServerClient(controlled.grpc_url) as client:
        expected = [await score_text(client, *request) for request in requests[:4]]
        served: list[str] = []
        done = asyncio.Event()

        async def keep_asking(request: tuple[str, list[str]], scores: NDArray[np.float32]) -> None:
            while not done.is_set():
                np.testing.assert_allclose(await score_text(client, *request), scores, atol=1e-5, rtol=0)
                served.append((await client.get_model_metadata(ENGINE)).versions[0])

        asking = [asyncio.create_task(keep_asking(*pair)) for pair in zip(requests[:4], expected, strict=True)]
        spec = make_spec(builtin.manifest, "cpu", precision="fp32")
        await asyncio.to_thread(write_repository, builtin, spec, controlled.repository, 2)
        for model in (ENGINE, TEXT):
            await asyncio.to_thread(load_model, controlled, model)
        done.set()
        await asyncio.gather(*asking)
        assert served[0] == "1"
        assert (await client.get_model_metadata(ENGINE)).versions == ["2"]
        np.testing.assert_allclose(await score_text(client, *requests[0]), expected[0], atol=1e-5, rtol=0)


def load_model(server: RunningTriton, model: str) -> None:
    """Ask for a model's newest version; an error is raised as HTTPError."""
    load = Request(f"{server.http_url}/v2/repository/models/{model}/load", data=b"{}", method="POST")
    with urlopen(load, timeout=60):
        pass
