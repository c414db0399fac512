"""Where models come from: huggingface_hub's real code against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossrank.bundles import cache as bundle_cache
from crossrank.bundles.bundle import Bundle, Source, load_bundle
from crossrank.bundles.cache import BundleCache
from crossrank.bundles.hub import download_files, list_repository
from crossrank.bundles.hub_ref import HubRef
from crossrank.errors import BundleError, ModelSourceError
from crossrank.resolve import builtin_path, resolve_model
from tests.fake_hub import FakeHub, Repository, copy_convert, model_files

ROOT = Path(__file__).resolve().parents[2]
PINNED = "cross-encoder/ms-marco-TinyBERT-L2-v2"
PINNED_COMMIT = "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc"
UNPINNED = "cross-encoder/ms-marco-MiniLM-L4-v2"
NEEDED = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "onnx/model.onnx",
}
NEEDS_TORCH = r"model_type 'ernie' is none of bert, .* need PyTorch .*: pip install 'crossrank\[export\]'"


@pytest.fixture(autouse=True)
def own_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests away from what this machine's user has downloaded, and from their token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hf"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        server.repositories[UNPINNED] = Repository(model_files())
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def resolve(hub: FakeHub, cache: Path) -> Callable[..., Bundle]:
    def call(spec: str, **options: Any) -> Bundle:
        return resolve_model(spec, **{"cache_dir": cache, "endpoint": hub.url, "convert": copy_convert, **options})

    return call


def pop(repository: Repository, *names: str) -> None:
    for name in names:
        del repository.files[name]


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache but empty directories and lock files."""
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if (path.is_file() and path.suffix != ".lock") or path.name.endswith(".partial")
    ]


# --- what works -------------------------------------------------------------------------------------------------


def test_a_hub_model_becomes_a_bundle_that_names_its_commit_and_files(hub, resolve, cache):
    bundle = resolve(UNPINNED)
    files = hub.repositories[UNPINNED].files
    assert bundle.manifest.source == Source(
        kind="hub",
        name=UNPINNED,
        revision=hub.repositories[UNPINNED].commit,
        sha256={name: hashlib.sha256(files[name]).hexdigest() for name in NEEDED},
    )
    assert bundle.path.is_relative_to(cache)
    assert bundle.path.name == f"cross-encoder--ms-marco-MiniLM-L4-v2@{hub.repositories[UNPINNED].commit}"
    assert load_bundle(bundle.path).file("model.onnx").read_bytes() == files["onnx/model.onnx"]


def test_only_the_needed_files_are_downloaded_and_no_pickle_ever(hub, resolve):
    resolve(UNPINNED)
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for m, path in hub.requests if m == "GET"}
    fetched |= {path.partition("/cdn/" + UNPINNED + "/")[2] for m, path in hub.requests if m == "GET"}
    assert fetched - {""} == NEEDED


def test_external_data_of_the_graph_is_downloaded_too(hub, resolve):
    hub.repositories[UNPINNED].files["onnx/model.onnx_data"] = b"weights"
    assert "onnx/model.onnx_data" in resolve(UNPINNED).manifest.source.sha256


def test_a_graph_at_the_top_of_the_repository_serves_too(hub, resolve):
    files = hub.repositories[UNPINNED].files
    files["model.onnx"] = files.pop("onnx/model.onnx")
    assert "model.onnx" in resolve(UNPINNED).manifest.source.sha256


@pytest.mark.parametrize(
    "spelling",
    ["cross-encoder/ms-marco-MiniLM-L-4-v2", "ms-marco-MiniLM-L-4-v2", "ms-marco-minilm-l4-v2"],
)
def test_old_and_short_spellings_load_the_same_model(resolve, spelling):
    assert resolve(spelling).manifest.model_id == UNPINNED


def test_the_second_start_downloads_nothing_and_works_without_the_hub(hub, resolve, caplog):
    first = resolve(UNPINNED)
    before = hub.count("GET", "onnx/model.onnx")
    assert resolve(UNPINNED).path == first.path
    assert hub.count("GET", "onnx/model.onnx") == before
    hub.stop()
    assert resolve(UNPINNED).path == first.path
    assert "serving the cached" in caplog.text


def test_a_cached_commit_is_served_without_asking_the_hub(hub, resolve):
    commit = hub.repositories[UNPINNED].commit
    resolve(f"{UNPINNED}@{commit}")
    asked = len(hub.requests)
    resolve(f"{UNPINNED}@{commit}")
    resolve(UNPINNED, revision=commit)
    assert len(hub.requests) == asked


def test_offline_serves_the_cached_bundle_without_asking_the_hub(hub, resolve, monkeypatch):
    first = resolve(UNPINNED)
    asked = len(hub.requests)
    assert resolve(UNPINNED, offline=True).path == first.path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(UNPINNED).path == first.path
    assert len(hub.requests) == asked


def test_offline_converts_what_the_hubs_own_cache_holds(hub, resolve, own_hub_cache):
    from huggingface_hub import hf_hub_download

    for name in NEEDED:
        hf_hub_download(UNPINNED, name, endpoint=hub.url, cache_dir=own_hub_cache)
    hub.stop()
    bundle = resolve(UNPINNED, offline=True)
    assert bundle.manifest.source.revision == hub.repositories[UNPINNED].commit


def test_files_in_the_hubs_own_cache_are_not_downloaded_again(hub, resolve, own_hub_cache):
    from huggingface_hub import hf_hub_download

    for name in NEEDED:
        hf_hub_download(UNPINNED, name, endpoint=hub.url, cache_dir=own_hub_cache)
    before = hub.count("GET", "onnx/model.onnx")
    assert set(resolve(UNPINNED).manifest.source.sha256) == NEEDED
    assert hub.count("GET", "onnx/model.onnx") == before


def test_files_that_the_hubs_own_cache_lacks_are_downloaded(hub, resolve, own_hub_cache):
    from huggingface_hub import hf_hub_download

    for name in NEEDED - {"special_tokens_map.json"}:
        hf_hub_download(UNPINNED, name, endpoint=hub.url, cache_dir=own_hub_cache)
    assert set(resolve(UNPINNED).manifest.source.sha256) == NEEDED


def test_a_damaged_file_in_the_hubs_own_cache_is_downloaded_afresh(hub, resolve, own_hub_cache):
    from huggingface_hub import hf_hub_download

    paths = {name: hf_hub_download(UNPINNED, name, endpoint=hub.url, cache_dir=own_hub_cache) for name in NEEDED}
    Path(paths["onnx/model.onnx"]).resolve().write_bytes(b"damaged")
    published = hub.repositories[UNPINNED].files["onnx/model.onnx"]
    assert resolve(UNPINNED).file("model.onnx").read_bytes() == published


def test_a_branch_that_moved_is_fetched_again(hub, resolve):
    first = resolve(UNPINNED)
    hub.repositories[UNPINNED].commit = "beef" * 10
    second = resolve(UNPINNED)
    assert second.manifest.source.revision == "beef" * 10
    assert first.path != second.path
    assert resolve(UNPINNED, offline=True).path == second.path


def test_a_damaged_cached_bundle_is_made_again(hub, resolve):
    bundle = resolve(UNPINNED)
    bundle.file("model.onnx").write_bytes(b"damaged")
    again = resolve(UNPINNED)
    assert again.file("model.onnx").read_bytes() == hub.repositories[UNPINNED].files["onnx/model.onnx"]


@pytest.mark.parametrize(("name", "value"), [("FORMAT", 99), ("version", lambda _: "99.0")])
def test_bundles_of_another_tool_version_are_not_served(resolve, monkeypatch, name, value):
    first = resolve(UNPINNED)
    monkeypatch.setattr(bundle_cache, name, value)
    with pytest.raises(ModelSourceError, match="not cached"):
        resolve(UNPINNED, offline=True)
    assert resolve(UNPINNED).path != first.path


def test_pinned_hashes_that_fit_are_accepted(hub, tmp_path):
    files = hub.repositories[UNPINNED].files
    expected = {name: hashlib.sha256(files[name]).hexdigest() for name in ("config.json", "onnx/model.onnx")}
    ref = HubRef(UNPINNED, hub.repositories[UNPINNED].commit, expected)
    listing = list_repository(ref, endpoint=hub.url)
    got = download_files(ref, listing, tmp_path / "files", NEEDED, endpoint=hub.url)
    assert got.keys() == NEEDED
    assert expected.items() <= got.items()


# --- local directories ------------------------------------------------------------------------------------------


def test_a_local_directory_with_onnx_is_converted_once_per_content(resolve, tmp_path):
    directory = tmp_path / "mine"
    write_files(directory, model_files())
    converted = []

    def convert(source_dir: Path, out: Path, source: Source, label: int | None) -> None:
        converted.append(source_dir)
        copy_convert(source_dir, out, source)

    first = resolve(str(directory), convert=convert, offline=True)
    assert first.manifest.source.kind == "directory"
    assert first.manifest.source.name == "mine"
    assert resolve(str(directory), convert=convert).path == first.path
    assert len(converted) == 1
    (directory / "config.json").write_text("{}")
    assert resolve(str(directory), convert=convert).path != first.path
    assert len(converted) == 2


def test_a_bundle_directory_is_served_where_it_lies(resolve, tmp_path):
    write_files(tmp_path / "source", model_files())
    copy_convert(tmp_path / "source", tmp_path / "bundle", Source(kind="onnx", name="x", revision=None))
    assert resolve(str(tmp_path / "bundle"), offline=True).path == tmp_path / "bundle"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (set(), "has no weights: looked for model.safetensors, model.safetensors.index.json, onnx/model.onnx"),
        ({"config.json", "tokenizer.json", "model.safetensors"}, NEEDS_TORCH),
        ({"config.json", "tokenizer.json", "pytorch_model.bin"}, "pickled weights"),
        ({"config.json", "onnx/model.onnx"}, "no tokenizer.json"),
        ({"tokenizer.json", "onnx/model.onnx"}, "no config.json"),
    ],
)
def test_a_local_directory_that_cannot_be_served_says_what_is_missing(resolve, tmp_path, names, message, monkeypatch):
    monkeypatch.setattr("crossrank.resolve.torch_is_installed", lambda: False)
    directory = tmp_path / "mine"
    directory.mkdir()
    write_files(directory, {name: content for name, content in model_files().items() if name in names})
    with pytest.raises(ModelSourceError, match=message):
        resolve(str(directory))


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(hub, resolve, spec):
    with pytest.raises(ModelSourceError, match="does not exist"):
        resolve(spec)
    assert not hub.requests


def test_a_file_that_is_no_graph_is_refused_with_the_advice_to_give_one(resolve, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelSourceError, match=r"is not an ONNX file: give a \.onnx file or a Hugging Face directory"):
        resolve(str(tmp_path / "model.bin"))


# --- what fails: one clear sentence, and nothing left behind ----------------------------------------------------


@pytest.mark.parametrize("spec", ["", "bulitin", "a b/c", "-/-", "owner/", "owner/name@", "owner/na--me", "o/n@a b"])
def test_a_malformed_id_is_refused_before_any_request(hub, resolve, spec):
    with pytest.raises(ModelSourceError, match=r"names no model|not a revision"):
        resolve(spec)
    assert not hub.requests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.files.pop("tokenizer.json"), "has no tokenizer.json"),
        (lambda r: r.files.pop("config.json"), "has no config.json"),
        (lambda r: pop(r, "onnx/model.onnx", "onnx/model_O1.onnx"), NEEDS_TORCH),
        (
            lambda r: pop(r, "onnx/model.onnx", "onnx/model_O1.onnx", "model.safetensors"),
            r"only pickled weights \(pytorch_model.bin\)",
        ),
        (lambda r: r.listed_only.add("config.json"), "lists a file that the hub does not have"),
        (lambda r: r.failing.update({"config.json": 500}), r"the hub failed on .* \(HTTP 500\): try again"),
        (lambda r: r.failing.update({"config.json": 403}), r"the hub refused .* \(HTTP 403\): set HF_TOKEN"),
        (lambda r: setattr(r, "gated", True), "is gated: accept its terms .* set HF_TOKEN"),
        (lambda r: setattr(r, "private", True), "not on the hub, or is private"),
        (
            lambda r: r.other_bytes.update({"onnx/model.onnx": b"x" * len(r.files["onnx/model.onnx"])}),
            "onnx/model.onnx has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: nothing was kept.*@main",
        ),
        (lambda r: r.broken_after.update({"onnx/model.onnx": 50}), "could not be fetched .* check the network"),
    ],
)
def test_what_fails_says_why_in_one_line_and_leaves_nothing(hub, resolve, cache, change, message, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub's pauses between its retries
    monkeypatch.setattr("crossrank.resolve.torch_is_installed", lambda: False)
    change(hub.repositories[UNPINNED])
    with pytest.raises(ModelSourceError, match=message) as caught:
        resolve(UNPINNED)
    assert "\n" not in caught.value.message
    assert leftovers(cache) == []


def test_an_unknown_id_is_refused(resolve, cache):
    with pytest.raises(ModelSourceError, match="nobody/nothing is not on the hub"):
        resolve("nobody/nothing")
    assert leftovers(cache) == []


def test_an_unknown_revision_is_refused(resolve):
    with pytest.raises(ModelSourceError, match="has no revision v9"):
        resolve(f"{UNPINNED}@v9")


def test_a_pinned_model_with_other_files_is_refused_and_can_be_overridden(hub, resolve, cache):
    hub.repositories[PINNED] = Repository(model_files(), commit=PINNED_COMMIT)
    expected = "2144195e107cd7ea61556478e7add12986ebfbc3085f924fc0b90c2410604879"
    with pytest.raises(ModelSourceError, match=f"config.json has sha256 .*, expected {expected}"):
        resolve("cross-encoder/ms-marco-TinyBERT-L-2-v2")
    assert leftovers(cache) == []
    assert resolve(f"{PINNED}@main").manifest.source.revision == PINNED_COMMIT


def test_a_pinned_model_is_asked_for_at_its_pinned_commit(hub, resolve):
    with pytest.raises(ModelSourceError):
        resolve(PINNED)
    assert hub.requests == [("GET", f"/api/models/{PINNED}/revision/{PINNED_COMMIT}")]


def test_a_pinned_file_that_differs_in_the_hubs_own_cache_is_refused_offline(hub, resolve, own_hub_cache):
    from huggingface_hub import hf_hub_download

    hub.repositories[PINNED] = Repository(model_files(), commit=PINNED_COMMIT)
    for name in NEEDED:
        hf_hub_download(PINNED, name, endpoint=hub.url, cache_dir=own_hub_cache, revision=PINNED_COMMIT)
    with pytest.raises(ModelSourceError, match=r"config.json has sha256 .*: delete .* and download again"):
        resolve(PINNED, offline=True)


def test_no_hub_and_nothing_cached_says_so(hub, resolve, cache):
    hub.stop()
    with pytest.raises(
        ModelSourceError, match=rf"could not be fetched from {hub.url} \(Connection refused\): check the network"
    ):
        resolve(UNPINNED)
    assert leftovers(cache) == []


def test_offline_and_nothing_cached_says_so(hub, resolve):
    with pytest.raises(ModelSourceError, match=f"{UNPINNED}@main is not cached and offline mode is on"):
        resolve(UNPINNED, offline=True)
    assert not hub.requests


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, BundleError])
def test_a_conversion_that_fails_leaves_nothing_and_can_be_repeated(resolve, cache, kind):
    def convert(source_dir: Path, out: Path, source: Source, label: int | None) -> None:
        copy_convert(source_dir, out, source)
        raise kind("the graph\nhas two lines of trouble")

    with pytest.raises(KeyboardInterrupt if kind is KeyboardInterrupt else BundleError):
        resolve(UNPINNED, convert=convert)
    assert leftovers(cache) == []
    assert resolve(UNPINNED).manifest.model_id == UNPINNED


def test_what_a_killed_process_left_does_not_disturb(hub, resolve, cache):
    root = BundleCache(cache).root
    write_files(root / f"cross-encoder--ms-marco-MiniLM-L4-v2@{hub.repositories[UNPINNED].commit}.partial", {"x": b""})
    resolve(UNPINNED)
    assert not list(root.glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_named(resolve, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelSourceError, match=r"cannot be written .* CROSSRANK_CACHE_DIR"):
        resolve(UNPINNED, cache_dir=tmp_path / "file")


# --- as processes: environment variables and a shared cache -----------------------------------------------------

DRIVER = """
import sys
from tests.fake_hub import copy_convert
from crossrank.errors import CrossrankError
from crossrank.resolve import builtin_path, resolve_model
try:
    print(resolve_model(sys.argv[1], convert=copy_convert).path.name)
except CrossrankError as error:
    sys.exit(error.message)
"""


def start(hub: FakeHub, tmp_path: Path, spec: str, **extra: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "CROSSRANK_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **extra,
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, spec],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_at_once_download_once_and_agree(hub, tmp_path):
    hub.rendezvous = threading.Barrier(2)  # both see that nothing is cached before either downloads
    processes = [start(hub, tmp_path, UNPINNED) for _ in range(2)]
    results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    name = f"cross-encoder--ms-marco-MiniLM-L4-v2@{hub.repositories[UNPINNED].commit}\n"
    assert [(out, code) for out, _, code in results] == [(name, 0)] * 2, results
    assert hub.count("GET", f"/cdn/{UNPINNED}/onnx/model.onnx") == 1


def test_the_environment_names_the_hub_the_cache_and_offline_mode(hub, tmp_path):
    process = start(hub, tmp_path, UNPINNED, HF_HUB_OFFLINE="1")
    _, refused = process.communicate(timeout=60)
    assert process.returncode == 1
    assert refused.startswith(f"{UNPINNED}@main is not cached and offline mode is on")
    assert not hub.requests
    out, _ = start(hub, tmp_path, UNPINNED).communicate(timeout=60)
    hub.stop()
    process = start(hub, tmp_path, UNPINNED, HF_HUB_OFFLINE="1")
    assert process.communicate(timeout=60)[0] == out
    assert (tmp_path / "cache" / "bundles").is_dir()


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


# --- through the command line, with the export package's own conversion -----------------------------------------


def rerank(hub: FakeHub, tmp_path: Path, model: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "CROSSRANK_CACHE_DIR": str(tmp_path / "cache"),
        **extra,
    }
    command = [sys.executable, "-m", "crossrank_server", "rerank", "--model", model, "--json", "--raw-scores"]
    command += ["--engine", "onnxruntime", "--query", "how many people live in berlin"]
    return subprocess.run(
        command, env=environment, text=True, capture_output=True, input="Berlin has 3,520,031 people.\nA motorway.\n"
    )


def builtin_as_hub_files() -> dict[str, bytes]:
    """The built-in model in the form of a hub repository with an ONNX graph."""
    bundle = load_bundle(builtin_path())
    shape = bundle.manifest.architecture
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": shape.model_type,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": bundle.manifest.max_length,
        "type_vocab_size": 2,
        "pad_token_id": bundle.manifest.pad_token_id,
        "id2label": {"0": "LABEL_0"},
    }
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": bundle.file("tokenizer.json").read_bytes(),
        "onnx/model.onnx": bundle.file(bundle.manifest.graph("fp32").file).read_bytes(),
    }


def test_a_hub_model_is_downloaded_optimized_and_ranks_like_its_source_then_without_the_hub(hub, tmp_path):
    hub.repositories["demo/mini"] = Repository(builtin_as_hub_files())
    source, online = rerank(hub, tmp_path, "builtin"), rerank(hub, tmp_path, "demo/mini")
    assert online.returncode == 0, online.stderr
    hub.stop()
    offline = rerank(hub, tmp_path, "demo/mini", HF_HUB_OFFLINE="1")
    expected = [(r["index"], r["relevance_score"]) for r in json.loads(source.stdout)["results"]]
    for run in (online, offline):
        answer = json.loads(run.stdout)
        assert answer["model"] == "demo/mini"
        assert [r["index"] for r in answer["results"]] == [index for index, _ in expected]
        scores = [r["relevance_score"] for r in answer["results"]]
        assert scores == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nobody/nothing", "error: nobody/nothing is not on the hub"),
        ("bulitin", "error: 'bulitin' names no model"),
        ("demo/pickle", "error: demo/pickle has only pickled weights"),
        ("demo/broken", "error: demo/broken/onnx/model.onnx is not a readable ONNX graph"),
    ],
)
def test_on_the_command_line_a_failure_is_one_line_and_exit_code_one(hub, tmp_path, model, message):
    hub.repositories["demo/pickle"] = Repository({"config.json": b"{}", "pytorch_model.bin": b""})
    hub.repositories["demo/broken"] = Repository({**builtin_as_hub_files(), "onnx/model.onnx": b"no graph"})
    run = rerank(hub, tmp_path, model)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(message), run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert not list((tmp_path / "cache").rglob("manifest.json"))
