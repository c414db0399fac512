"""Fixtures shared by all tests; data beside the project is used where present and skipped, visibly, where not."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import certifi
import pytest

from crossrank.bundles.bundle import Bundle, load_bundle
from tests.services import PostgresServer, running_postgresql, running_redis

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CROSSRANK_SHARED", ROOT.parent / "shared"))


@dataclass(frozen=True)
class Topic:
    """One query of TREC DL 2019 with its first-stage candidates in BM25 order."""

    qid: str
    query: str
    pids: list[str]
    passages: list[str]


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one of the usual authorities unless told otherwise: reading all takes each HTTP client 40 ms."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    path.write_text("".join(certifi.contents().partition("-----END CERTIFICATE-----\n")[:2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no data beside the project at {SHARED} (CROSSRANK_SHARED names another place)")
    return SHARED


@pytest.fixture(scope="session")
def dl19(shared_dir: Path) -> list[Topic]:
    """TREC DL 2019: 43 queries x BM25 top-100 passages."""
    topics = []
    with gzip.open(shared_dir / "data" / "dl19-bm25-top100.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            candidates = row["candidates"]
            topics.append(
                Topic(
                    str(row["qid"]),
                    row["query"],
                    [str(c["docid"]) for c in candidates],
                    [c["text"] for c in candidates],
                )
            )
    return topics


@pytest.fixture(scope="session")
def dl19_qrels(shared_dir: Path) -> dict[str, dict[str, int]]:
    """TREC DL 2019 judgments: qid -> pid -> grade."""
    qrels: dict[str, dict[str, int]] = {}
    for line in (shared_dir / "data" / "dl19-qrels.txt").read_text().splitlines():
        qid, _, pid, grade = line.split()
        qrels.setdefault(qid, {})[pid] = int(grade)
    return qrels


@pytest.fixture(scope="session")
def mini_dir(shared_dir: Path) -> Path:
    """The source checkpoint of the built-in model (Hugging Face directory)."""
    return shared_dir / "models" / "crossrank-mini"


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def builtin() -> Bundle:
    """The built-in model."""
    return load_bundle(ROOT / "server" / "crossrank" / "bundles" / "builtin")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.new_database()
