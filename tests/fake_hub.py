"""A local HTTP server that speaks the part of the Hugging Face hub's protocol that downloads use.

Repositories live in memory; large files are redirected to another path as the real hub does to its CDN, with the
sha256 as X-Linked-ETag; errors carry X-Error-Code. Faults (a status, a connection that breaks, other bytes than
announced) are switched on per file; a rendezvous holds listings back until several clients have asked for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

from crossrank.bundles.bundle import (
    Architecture,
    Graph,
    Manifest,
    PairTemplate,
    Source,
    Tensor,
    sha256_of,
    write_manifest,
)


@dataclass
class Repository:
    """One model repository: a single commit, also reachable as `main`."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    gated: bool = False
    private: bool = False
    large: set[str] = field(default_factory=lambda: {"onnx/model.onnx", "model.safetensors"})
    listed_only: set[str] = field(default_factory=set)
    broken_after: dict[str, int] = field(default_factory=dict)
    other_bytes: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)

    def info(self, model_id: str) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _git_sha1(content)}
            if name in self.large:
                entry["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 133}
            siblings.append(entry)
        return {
            "_id": "0",
            "id": model_id,
            "modelId": model_id,
            "sha": self.commit,
            "private": self.private,
            "gated": "auto" if self.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }


class FakeHub:
    """The server; a context manager. `url` is the endpoint, `requests` what was asked (method, path)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.connections: set[socket.socket] = set()
        self.rendezvous: threading.Barrier | None = None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """Where large files are: as on the real hub, another host, to which clients send no token."""
        return f"http://localhost:{self._server.server_address[1]}"

    def count(self, method: str, suffix: str) -> int:
        """Requests so far with that method whose path ends so."""
        return sum(m == method and path.endswith(suffix) for m, path in self.requests)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: from now on connections are refused. Calling it twice is harmless."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        for connection in list(self.connections):  # clients keep theirs open for the next request
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: FakeHub

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        super().finish()
        self.hub.connections.discard(self.connection)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        self.hub.requests.append((self.command, self.path.partition("?")[0]))

    def _answer(self, with_body: bool) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_info("/".join(parts[2:4]), "/".join(parts[5:]) or "main", with_body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)
        elif parts[0] == "cdn":
            repository = self.hub.repositories["/".join(parts[1:3])]
            self._send_file(repository, "/".join(parts[3:]), {}, with_body)
        else:
            self._send(404, b"", {}, with_body)

    def _repository(self, model_id: str, revision: str, with_body: bool) -> Repository | None:
        repository = self.hub.repositories.get(model_id)
        if repository is None or repository.private:
            # The real hub answers 401 to strangers, so as not to tell private from absent.
            self._error(401, "RepoNotFound", "Invalid username or password.", with_body)
            return None
        if revision not in ("main", repository.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}", with_body)
            return None
        return repository

    def _answer_info(self, model_id: str, revision: str, with_body: bool) -> None:
        repository = self._repository(model_id, revision, with_body)
        if self.hub.rendezvous is not None:
            self.hub.rendezvous.wait(60)
        if repository is not None:
            body = json.dumps(repository.info(model_id)).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body)

    def _answer_file(self, model_id: str, revision: str, name: str, with_body: bool) -> None:
        repository = self._repository(model_id, revision, with_body)
        if repository is None:
            return
        if repository.gated and "Authorization" not in self.headers:
            self._error(401, "GatedRepo", f"Access to model {model_id} is restricted.", with_body)
            return
        if name not in repository.files or name in repository.listed_only:
            self._error(404, "EntryNotFound", "Entry not found", with_body)
            return
        if name in repository.failing:
            self._error(repository.failing[name], "", "Internal error", with_body)
            return
        content = repository.files[name]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{_git_sha1(content)}"'}
        if name not in repository.large:
            self._send_file(repository, name, headers, with_body)
            return
        headers["X-Linked-ETag"] = f'"{_sha256(content)}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"{self.hub.cdn_url}/cdn/{model_id}/{name}"
        self._send(302, b"", headers, with_body)

    def _send_file(self, repository: Repository, name: str, headers: dict[str, str], with_body: bool) -> None:
        content = repository.other_bytes.get(name, repository.files[name])
        status, start = 200, 0
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if (wanted := self.headers.get("Range")) is not None:
            status, start = 206, int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        broken_after = repository.broken_after.get(name)
        self._send(status, content[start:], headers, with_body, broken_after)

    def _error(self, status: int, code: str, message: str, with_body: bool) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message}).encode(), headers, with_body)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        with_body: bool,
        broken_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body[:broken_after])
            self.close_connection = self.close_connection or broken_after is not None


def model_files() -> dict[str, bytes]:
    """A repository as the hub ships such a model, in miniature, weights in every format.

    Of a family whose safetensors are not opened without PyTorch, so that its graph is what is read.
    """
    return {
        "README.md": b"# a model card\n",
        "config.json": json.dumps(
            {
                "architectures": ["ErnieForSequenceClassification"],
                "model_type": "ernie",
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vocab_size": 32,
                "max_position_embeddings": 64,
                "id2label": {"0": "LABEL_0"},
            }
        ).encode(),
        "model.safetensors": b"weights that need PyTorch",
        "onnx/model.onnx": _tiny_graph(),
        "onnx/model_O1.onnx": b"another variant",
        "pytorch_model.bin": b"a pickle",
        "special_tokens_map.json": b'{"cls_token": "[CLS]"}',
        "tokenizer.json": _tiny_tokenizer(),
        "tokenizer_config.json": b'{"do_lower_case": true}',
    }


def copy_convert(directory: Path, out: Path, source: Source, label: int | None = None) -> None:
    """The smallest honest converter: the graph as it is, with a manifest around it."""
    out.mkdir()
    graph = next(path for path in (directory / "onnx/model.onnx", directory / "model.onnx") if path.is_file())
    (out / "model.onnx").write_bytes(graph.read_bytes())
    (out / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    axes: list[str | int] = ["batch", "sequence"]
    manifest = Manifest(
        model_id=source.name,
        source=source,
        architecture=Architecture(model_type="bert", layers=1, hidden=8, heads=2, ffn=16, vocab_size=32),
        num_labels=1,
        max_length=64,
        pad_token_id=0,
        special_token_ids={"pad": 0},
        pair_template=PairTemplate(start=[1], middle=[2], end=[2]),
        activation="identity",
        graphs=[
            Graph(
                file="model.onnx",
                precision="fp32",
                inputs=[Tensor(name="input_ids", dtype="int64", shape=axes)],
                output=Tensor(name="logits", dtype="float32", shape=["batch", 1]),
            )
        ],
        files={name: sha256_of(out / name) for name in ("model.onnx", "tokenizer.json")},
    )
    write_manifest(out, manifest)


def _tiny_tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(tokenizer.to_str()).encode()


def _tiny_graph() -> bytes:
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["input_ids"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values"], ["logits"], axes=[1], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
